"""Typed access to a config that somebody else wrote, with errors that name file and field."""

import sys
from collections.abc import Mapping
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown


class Fields:
    """A mapping of a config.

    Args:
        where: the file, for the errors' sentences.
    """

    def __init__(self, raw: Mapping[str, Any], where: object) -> None:
        self.raw, self.where = raw, where

    def error(self, name: str, condition: str) -> CheckpointError:
        """The error that a field deserves."""
        got = shown(self.raw[name]) if name in self.raw else "nothing"
        return CheckpointError(f"{name} in {self.where} {condition}, got {got}.")

    def integer(self, name: str) -> int:
        """A positive integer."""
        value = self.raw.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, "must be a positive integer")
        return value

    def number(self, name: str) -> float:
        """A positive, finite number."""
        value = self.raw.get(name)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value <= sys.float_info.max
        ):
            raise self.error(name, "must be a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A boolean; absent means false."""
        value = self.raw.get(name)
        if value not in (None, True, False):
            raise self.error(name, "must be true or false")
        return bool(value)

    def only(self, name: str, *allowed: Any, why: str) -> None:
        """Refuse any other value of a field; absent is a value, None."""
        value = self.raw.get(name)
        if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
            raise self.error(name, f"must be {' or '.join(map(repr, allowed))}: {why}")

    def no_window(self, name: str, max_position_embeddings: int) -> None:
        """Refuse a sliding window that would cut something off."""
        window = self.raw.get(name)
        if window is not None and (
            not isinstance(window, int)
            or isinstance(window, bool)
            or window < max_position_embeddings
        ):
            raise self.error(
                name,
                "must be null or at least max_position_embeddings "
                f"({max_position_embeddings}): an active window is not supported",
            )
