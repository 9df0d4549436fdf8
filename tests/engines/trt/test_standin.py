"""The stand-in refuses what CUDA and TensorRT refuse by their documentation, so a session fails."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt import contract
from nemo_trt.engines.trt.decoders import Decoders
from nemo_trt.engines.trt.inputs import Inputs
from nemo_trt.engines.trt.outputs import Outputs
from nemo_trt.engines.trt.row_cache import RowCache
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.errors import MachineError

from .fake_device import FakeDevice
from .standin import FakeContext, FakePlan, record_of
from .test_session import bundle

pytestmark = pytest.mark.model
__all__ = ["bundle"]  # the fixture


@pytest.mark.parametrize(
    "breaks",
    [
        lambda device, address: device.allocate(8),
        lambda device, address: device.free(address),
        lambda device, address: device.upload(address, np.zeros(2)),
        lambda device, address: device.download(np.zeros(2), address),
        lambda device, address: device.start_download(np.zeros(2), address),
        lambda device, address: device.wait(),
        lambda device, address: device.begin_capture(),
        lambda device, address: device.launch(0),
    ],
)
def test_what_breaks_a_capture_is_refused_and_so_is_its_end(
    breaks: Callable[[FakeDevice, int], None],
) -> None:
    device = FakeDevice()
    address = device.allocate(16)
    device.begin_capture()
    with pytest.raises(MachineError, match="cudaErrorStreamCaptureUnsupported"):
        breaks(device, address)
    with pytest.raises(MachineError, match="cudaErrorStreamCaptureInvalidated"):
        device.end_capture()


def test_a_graph_that_was_freed_is_not_launched() -> None:
    device = FakeDevice()
    device.begin_capture()
    graph = device.end_capture()
    device.launch(graph)
    device.free_graph(graph)
    with pytest.raises(MachineError, match="no such graph"):
        device.launch(graph)


def opened(bundle: Path, device: FakeDevice) -> TensorRtSession:
    return TensorRtSession(
        bundle, record_of(bundle), device=device, open_plan=lambda _: FakePlan(bundle, device)
    )


def nothing(*_: Any) -> None:
    """What a session forgets to do."""


def caches_without_shapes(
    cache: RowCache, context: FakeContext, row: int, rows: int | None = None
) -> None:
    plain = context.set_shape
    context.set_shape = nothing  # type: ignore[method-assign]
    BIND(cache, context, row, rows)
    context.set_shape = plain  # type: ignore[method-assign]


def capture_at_once(decoders: Decoders, window: Any, context: Any, prepare: Any) -> None:
    decoders._contexts[window] = context
    decoders._capture(window, context)


BIND = RowCache.bind


@pytest.mark.parametrize(
    ("owner", "method", "faulty", "words"),
    [
        (Inputs, "bind", nothing, r"memory of each tensor, not without \['input_ids'"),
        (Outputs, "bind", nothing, r"memory of each tensor, not without \['candidate"),
        (RowCache, "bind", nothing, r"shape of each input, not without \['past_key_values"),
        (RowCache, "bind", caches_without_shapes, r"shape of each input, not without \['past"),
    ],
)
def test_a_session_that_forgets_to_bind_does_not_open(
    owner: Any,
    method: str,
    faulty: Any,
    words: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, method, faulty)
    with pytest.raises(MachineError, match=words):
        opened(bundle, FakeDevice())


def test_a_session_that_captures_the_first_run_gets_no_graph(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoders, "add", capture_at_once)
    with opened(bundle, FakeDevice()) as session:
        assert "a first run" in session.describe()["without_graph"]


@pytest.mark.parametrize(("scratch", "words"), [(1023, "must have 1024 bytes"), (-1, "of 256")])
def test_scratch_that_is_too_small_or_not_aligned_is_refused(
    scratch: int, words: str, bundle: Path
) -> None:
    device = FakeDevice()
    address = device.allocate(2048)
    if scratch < 0:
        device.live.add(address + 1)
        address, scratch = address + 1, 1024
    with pytest.raises(MachineError, match=words):
        FakePlan(bundle, device).context(0, device.stream, address, scratch)


def test_a_session_whose_scratch_is_too_small_does_not_open(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakePlan.context
    monkeypatch.setattr(
        FakePlan, "context", lambda plan, *asked: plain(plan, *asked[:3], asked[3] - 1)
    )
    with pytest.raises(MachineError, match="Scratch must have 1024 bytes, got 1023"):
        opened(bundle, FakeDevice())


@pytest.mark.parametrize("how", ["another shape", "closed"])
def test_a_graph_does_not_outlive_the_shapes_of_its_context_or_the_context(
    how: str, bundle: Path
) -> None:
    device = FakeDevice()
    with opened(bundle, device) as session:
        one = np.zeros((1, 1), np.int64)
        session.step(one, np.array([0]), one)
        (plan, _) = session._plans["decode-1"]
        for context in plan.of("decode-1"):  # type: ignore[attr-defined]
            if how == "closed":
                context.close()
            else:
                context.shapes[contract.past_name(0, "key")] = (1, 2, 3, 4)
        with pytest.raises(MachineError, match="must not outlive"):
            session.step(one, np.array([1]), one)
        with suppress(MachineError):
            session.close()
