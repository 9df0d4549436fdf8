"""The OpenAI API over HTTP, as an ASGI application."""

from typing import TYPE_CHECKING, Any

from .server import serve_forever

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["create_app", "serve_forever"]


def __getattr__(name: str) -> Any:
    """`create_app` loads when it is asked for: it needs a runtime that a front end does without."""
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .app import create_app

    return create_app
