"""Converts a checkpoint to another format: streaming, atomic, bit for bit."""

from .convert import FORMATS, convert

__all__ = ["FORMATS", "convert"]
