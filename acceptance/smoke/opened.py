"""What probes of a running engine work on: its sessions, its plan, a device and two clocks."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nemo_trt.bundle import Bundle
from nemo_trt.engines.device import CudaDevice, Device
from nemo_trt.engines.session import Logits, Session, Tokens
from nemo_trt.engines.trt.engine_record import EngineRecord, read_record
from nemo_trt.engines.trt.runtime import Plan, TensorRtPlan
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.engines.trt.toolkit import load_toolkit
from nemo_trt.tolerances import tolerance_of

LAST = np.zeros((1, 1), np.int64)
"""The logit indices of one row's decode step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An engine on its GPU.

    Attributes:
        record: the engine's.
        folder: of the engine.
        open: opens a session; its argument says whether decode steps are replayed as graphs.
        device: gives the device, for a probe to look at; the probe closes it.
        plan: loads the plan that has the prefill profile.
        stripped: opens the engine that takes its weights from the bundle; None if there is none.
        bandwidth_bytes_per_s: of the GPU's memory; None if it is not known.
        wall, cpu: seconds that passed, and seconds that this thread computed.
    """

    record: EngineRecord
    folder: Path
    open: Callable[[bool], TensorRtSession]
    device: Callable[[], Device]
    plan: Callable[[], Plan]
    stripped: Callable[[], TensorRtSession] | None
    bandwidth_bytes_per_s: float | None
    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.thread_time

    @property
    def limit(self) -> float:
        """Relative L2 distance of logits that rounding explains."""
        return tolerance_of(self.record.precision).max_relative_l2


def opened(bundle: Bundle, name: str, bandwidth_bytes_per_s: float | None) -> Opened:
    """An engine of a bundle, on this machine's GPU."""
    record = read_record(bundle, name, verify=False)
    toolkit = load_toolkit(record.toolkit)  # type: ignore[arg-type]  # the builder wrote it
    folder, file = bundle.engine_folder(name), record.plans[0]
    taking = f"{name}-stripped"
    return Opened(
        record=record,
        folder=folder,
        open=lambda use_graphs: TensorRtSession.open(bundle, name, use_graphs=use_graphs),
        device=CudaDevice,
        plan=lambda: TensorRtPlan(toolkit, folder / file.file, file.digest, record.paged),
        stripped=(
            (lambda: TensorRtSession.open(bundle, taking)) if taking in bundle.engines() else None
        ),
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
    )


def tokens(session: Session, rows: int, length: int, seed: int = 0) -> Tokens:
    """(rows, length) seeded tokens."""
    return np.random.default_rng(seed).integers(0, session.config.vocab_size, (rows, length))


def prefill(session: Session, ids: Tokens, row: int) -> Logits:
    """(V,) logits behind the tokens of one row, which starts anew."""
    last = np.array([[len(ids) - 1]])
    logits: Logits = session.step(ids[None], np.zeros(1, np.int64), last, row)[0, 0].copy()
    return logits


def decode(session: Session, ids: Tokens, starts: Tokens, first_row: int = 0) -> Logits:
    """(B, V) logits of one token of each row, behind the tokens that it holds."""
    wanted = np.zeros((len(ids), 1), np.int64)
    logits: Logits = session.step(ids[:, None], starts, wanted, first_row)[:, 0].copy()
    return logits


def held(session: Session, row: int, start: int, stop: int) -> NDArray[np.float32]:
    """Keys and values of some tokens of a row, of all layers: (2 L, K, stop - start, D)."""
    kinds = [
        (layer, kind) for layer in range(session.config.num_layers) for kind in ("key", "value")
    ]
    return np.stack([session.read_cache(layer, kind, row, start, stop) for layer, kind in kinds])


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Relative L2 distance; infinite where something is not finite."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def free_bytes(subject: Opened) -> int:
    """Memory that the device can still give."""
    with closing(subject.device()) as device:
        return device.free_bytes()
