"""The OpenAI API over HTTP, as an ASGI application."""

from .app import create_app
from .server import serve_forever

__all__ = ["create_app", "serve_forever"]
