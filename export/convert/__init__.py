"""Writes a checkpoint as another container of the same model: streaming, atomic, bit for bit."""

from .convert import CONTAINERS, convert

__all__ = ["CONTAINERS", "convert"]
