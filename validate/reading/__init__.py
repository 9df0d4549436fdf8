"""Weights of a checkpoint as other implementations than ours read them."""

from .open import open_weights
from .source import WeightSource

__all__ = ["WeightSource", "open_weights"]
