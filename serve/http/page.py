"""The chat page's files, with headers that let it load and reach nothing but this server."""

from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER = Path(__file__).resolve().parents[1] / "page"
_TYPES = {  # a machine's own table of types may say otherwise
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked for again: ETag answers with 304
}


class _Files(StaticFiles):
    """A folder's files, each with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file, or that it has not changed."""
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        if response.status_code == 200:
            response.headers["Content-Type"] = _TYPES.get(
                Path(path).suffix, "application/octet-stream"
            )
        return response


def mount_page(app: FastAPI) -> None:
    """Serve the page at / and what it loads under /page."""
    files = _Files(directory=_FOLDER)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.mount("/page", files, name="page")
