"""HTTP in processes of its own, before one engine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .front_ends import serve_by_front_ends

__all__ = ["serve_by_front_ends"]


def __getattr__(name: str) -> Any:
    """It loads when it is asked for: front ends need no engine."""
    if name != "serve_by_front_ends":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.front_ends"), name)
