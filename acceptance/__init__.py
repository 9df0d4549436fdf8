"""Acceptance: a checkpoint and a GPU's name become one report of everything that was proved."""

from .acceptance_options import AcceptanceOptions
from .chain import Watcher, accept
from .step_record import Record
from .verdict import Summary

__all__ = ["AcceptanceOptions", "Record", "Summary", "Watcher", "accept"]
