"""Serving past one machine: an ingress and replicas of the server on Ray Serve."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster_options import ClusterOptions
    from .deploy import application, build
    from .local import serve_cluster_forever

_HOMES = {
    "ClusterOptions": "cluster_options",
    "application": "deploy",
    "build": "deploy",
    "serve_cluster_forever": "local",
}
__all__ = ["ClusterOptions", "application", "build", "serve_cluster_forever"]


def __getattr__(name: str) -> Any:
    """Names load when they are asked for: Ray reads its settings when it is imported."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
