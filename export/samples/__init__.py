"""Checkpoints for trying and testing: a real small model, and seeded ones of any shape."""

from .seeded import SHAPES, write_seeded
from .smollm2 import write_smollm2

__all__ = ["SHAPES", "write_seeded", "write_smollm2"]
