"""Lets web pages of listed origins use the API; by default no page but the server's own may."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from nemo_trt.serve.options import ServeOptions


def allow_origins(app: FastAPI, options: ServeOptions) -> None:
    """Answer what browsers ask before a page's request, without a key: it has none yet."""
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Relaxed-Schemas", "Retry-After"],
        )
