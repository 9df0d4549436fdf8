"""Checkpoint readers: what is on disk becomes canonical lazy tensors, a config and a tokenizer."""

from .checkpoint import Checkpoint
from .open import open_checkpoint, open_reference
from .tokenizer_files import unpacked

__all__ = ["Checkpoint", "open_checkpoint", "open_reference", "unpacked"]
