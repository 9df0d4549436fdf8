"""What a step's work hands back, and how it says that this machine cannot do it."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_trt.acceptance.step_record import Scalar
from nemo_trt.errors import MachineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The outcome of a step. See `Record` for the fields."""

    verdict: Literal["pass", "fail"] = "pass"
    reason: str = ""
    product: Mapping[str, Scalar] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class CannotHere(MachineError):
    """This machine lacks what the step needs, found before it began; the step is skipped.

    Any other error, a later `MachineError` too, fails the step.
    """


def require_packages(extra: str, *names: str) -> None:
    """Raise `CannotHere` unless all packages are installed."""
    missing = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise CannotHere(
            f"{', '.join(missing)} must be installed. Install: pip install 'nemo-trt[{extra}]'."
        )
