"""Checkpoint readers: what is on disk becomes canonical lazy tensors, a config and a tokenizer."""

from .checkpoint import Checkpoint
from .open import open_checkpoint
from .tokenizer_files import unpacked

__all__ = ["Checkpoint", "open_checkpoint", "unpacked"]
