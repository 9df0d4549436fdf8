"""An engine for probes to work on: the stand-in, which a test makes behave otherwise."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt import contract
from nemo_trt.acceptance.smoke.opened import Opened
from nemo_trt.bundle import Bundle
from nemo_trt.engines.trt.engine_record import EngineRecord
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.engines.trt.stripped import digest_of, taken_weights
from tests.engines.trt.fake_device import FakeDevice
from tests.engines.trt.standin import FakeContext, FakePlan, record_of

MEMORY = 10**10


class Device(FakeDevice):
    """Says what it has left of 10 GB while a session is open. `taken` is gone besides."""

    taken = 0

    def free_bytes(self) -> int:
        return MEMORY - self.taken - (self.next if self.live else 0)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@cache
def _loaded(bundle: Path) -> FakePlan:
    """A plan on no device: its graph is read once."""
    return FakePlan(bundle, FakeDevice())


class Lab:
    """A bundle's stand-in engine.

    Attributes:
        device: of the session that was opened last.
        kept: what a session keeps of its opening in the engine's folder.
    """

    def __init__(self, bundle: Path, folder: Path, record: EngineRecord | None = None) -> None:
        self.bundle, self.folder = bundle, folder
        self.record = record or record_of(bundle)
        self.device = Device()
        self.wall, self.cpu = Clock(), Clock()
        self.kept: Callable[[int], bytes | None] = lambda opening: b"kernels"
        self.openings = 0
        self.bandwidth: float | None = None

    def open(self, use_graphs: bool) -> TensorRtSession:
        self.device = Device()
        session = TensorRtSession(
            self.bundle, self.record, device=self.device, open_plan=lambda _: self.plan(),
            use_graphs=use_graphs,
        )  # fmt: skip
        content = self.kept(self.openings)
        self.openings += 1
        if content is not None:
            (self.folder / "engine-ab.runtime-cache").write_bytes(content)
        return session

    def open_stripped(self) -> TensorRtSession:
        """The same engine, whose weights are what the bundle has now."""
        options = replace(self.record.options, strip=True)
        digest = digest_of(taken_weights(Bundle.open(self.bundle)))
        record = replace(self.record, options=options, stripped=digest)
        device = Device()
        return TensorRtSession(
            self.bundle, record, device=device,
            open_plan=lambda _: FakePlan(self.bundle, device, stripped=True),
        )  # fmt: skip

    def plan(self) -> FakePlan:
        plan = copy(_loaded(self.bundle))
        plan.device, plan.contexts = self.device, []
        return plan

    @property
    def subject(self) -> Opened:
        return Opened(
            record=self.record,
            folder=self.folder,
            open=self.open,
            device=lambda: self.device,
            plan=self.plan,
            stripped=self.open_stripped,
            bandwidth_bytes_per_s=self.bandwidth,
            wall=self.wall,
            cpu=self.cpu,
        )


def after_each_run(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[FakeContext], object]
) -> None:
    """Let something happen whenever a context has run."""
    plain = FakeContext.run

    def run(context: FakeContext) -> None:
        plain(context)
        happens(context)

    monkeypatch.setattr(FakeContext, "run", run)


def lies_at(context: FakeContext, name: str, dtype: Any) -> np.ndarray:
    """What a context's input holds."""
    return context.plan.device.at(context.addresses[name], context.shapes[name], dtype)


def logits_of(context: FakeContext) -> np.ndarray:
    """(B, N, V) that a context has written."""
    rows, count = context.shapes[contract.LOGIT_INDICES]
    shape = (rows, count, context.plan.config.vocab_size)
    return context.plan.device.at(context.addresses[contract.LOGITS], shape, np.float32)
