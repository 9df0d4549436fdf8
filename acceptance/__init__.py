"""Acceptance: a checkpoint and a GPU's name become one report of everything that was proved."""

from .chain import Watcher, accept
from .options import AcceptanceOptions
from .record import Record
from .verdict import Summary

__all__ = ["AcceptanceOptions", "Record", "Summary", "Watcher", "accept"]
