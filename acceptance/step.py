"""One step of an acceptance: what it needs, what it depends on, and what it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_trt.bundle import Bundle
from nemo_trt.engines.trt.engine_record import read_record
from nemo_trt.errors import NemoTrtError

from .identity import code_digest
from .step_record import Record, Scalar

EXPORT_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript")
ENGINE_PACKAGES = ("tensorrt", "tensorrt-rtx")


def _nothing_gone(_: Record) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do.

    Attributes:
        name: unique, and its record's file.
        stage: whose work it is.
        subject: what of it, in words.
        arguments: of the work, JSON-ready.
        needs: steps that must have passed; what they made is an input of this one.
        unless_failed: steps whose failure makes this one pointless, if they were run.
        inputs, environment: what else the outcome depends on, see `Record`.
        gone: why what an earlier run made is no longer there, "" when it is.
        essential: whether the whole cannot pass without it.
        keep: whether an earlier outcome counts.
    """

    name: str
    stage: str
    subject: str
    arguments: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    unless_failed: tuple[str, ...] = ()
    inputs: Mapping[str, Scalar] = field(default_factory=dict)
    environment: Mapping[str, Scalar] = field(default_factory=dict)
    gone: Callable[[Record], str] = _nothing_gone
    essential: bool = True
    keep: bool = True


def code_of(*rooms: str) -> dict[str, Scalar]:
    """Digests of the code that an outcome depends on."""
    every = ("nemo_trt", *(f"nemo_trt.{room}" for room in rooms))
    return {f"code of {room}": code_digest(room) for room in every}


def bundle_gone(bundle: Path, record: Record) -> str:
    """Why the bundle of a record is no longer there, "" when it is."""
    try:
        found = Bundle.open(bundle).bundle_id
    except NemoTrtError as error:
        return str(error)
    return "" if found == record.product["bundle_id"] else f"{bundle.name} is another bundle now."


def engine_gone(bundle: Path, engine: str, record: Record) -> str:
    """Why the engine of a record is no longer there, "" when it is."""
    try:
        found = read_record(Bundle.open(bundle), engine, verify=False).engine_id
    except NemoTrtError as error:
        return str(error)
    return "" if found == record.product["engine_id"] else f"{engine} is another engine now."
