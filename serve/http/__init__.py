"""The OpenAI API over HTTP, as an ASGI application."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app
    from .server import serve_forever

_HOMES = {"create_app": "app", "serve_forever": "server"}
__all__ = ["create_app", "serve_forever"]


def __getattr__(name: str) -> Any:
    """Names load when they are asked for: a front end needs no runtime, an engine no HTTP."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
