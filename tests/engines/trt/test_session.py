"""The TensorRT session's logic, on a stand-in that computes (`standin.py`)."""

import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.cli.build import command as build_command
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.trt.engine_record import EngineRecord
from nemo_trt.engines.trt.kernels import READ_LINES
from nemo_trt.engines.trt.paged_session import PagedTensorRtSession
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.engines.trt.toolkit import Log, Toolkit
from nemo_trt.errors import CapacityError, MachineError, RequestError, StateError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.precision import DType

from .fake_device import FakeDevice
from .properties import PROPERTIES, near, tokens, whole
from .standin import (
    PROFILES,
    ROWS,
    FakeContext,
    FakePlan,
    T,
    paged_of,
    plan_of,
    record_of,
)

pytestmark = pytest.mark.model

KINDS = {"native": TensorRtSession, "paged": PagedTensorRtSession}


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, cached: Any) -> Path:
    def make(folder: Path) -> None:
        export_bundle(tiny_checkpoint, folder / "bundle", precision=DType.FP16)

    return Path(cached("tiny-fp16", make) / "bundle")


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


def both_profiles(bundle: Path, attention: str) -> EngineRecord:
    """A record of one plan, of either attention."""
    record = record_of(bundle)
    options = replace(record.options, attention=attention, page=16)
    return replace(record, options=options, paged=paged_of(bundle))


@pytest.fixture(params=["native", "paged"])
def opened(bundle: Path, device: FakeDevice, request: pytest.FixtureRequest) -> Any:
    """(session, its plan)"""
    plans: list[FakePlan] = []

    def open_plan(path: Path) -> FakePlan:
        plans.append(plan_of(bundle, device, request.param))
        return plans[-1]

    record = both_profiles(bundle, request.param)
    session = KINDS[request.param](bundle, record, device=device, open_plan=open_plan)
    yield session, plans[0]
    session.close()


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_properties_of_every_session(holds: Callable[..., None], opened: Any, bundle: Path) -> None:
    holds(opened[0], bundle, limit=5e-3)


def test_every_window_is_captured_at_open_and_then_launched(
    opened: Any, device: FakeDevice
) -> None:
    session, plan = opened
    assert device.calls["kept"] == 1  # what was compiled for them
    decoders = plan.of("decode")
    windows = ["decode-3", "decode-1", "decode-2", "decode-1", "decode-1"]
    wanted = ["decode-1", "decode-2", "decode-3"] if plan.page else windows
    assert [context.profile for context in decoders] == wanted
    assert device.calls["capture"] == len(wanted)
    for context in decoders:
        assert context.calls["enqueue"] == 2  # as it is, and for the capture
    before = [dict(context.calls) for context in plan.contexts]
    one, two = np.zeros((1, 1), np.int64), np.zeros((2, 1), np.int64)
    for index in range(5):
        session.step(one, np.array([index]), one)
        session.step(two, np.array([index, index]), two)
        session.step(one, np.array([index]), one, 2)
    assert device.calls["launch"] == 3 * 5 and device.calls["capture"] == len(wanted)
    assert [dict(context.calls) for context in plan.contexts] == before, "nothing is made later"


@pytest.mark.parametrize(("first", "full"), [(0, (2,)), (1, ()), (1, (0,)), (2, (0, 1, 2))])
def test_rows_beside_those_that_step_keep_what_they_hold(
    first: int, full: tuple[int, ...], opened: Any, bundle: Path
) -> None:
    """A window may be wider than what is asked for; a full row has no place for what it writes."""
    session, _ = opened
    ids = tokens(ROWS, T)
    held = [T if row in full else 5 for row in range(ROWS)]
    for row, length in enumerate(held):
        start = np.array([[length - 1]])
        session.step(ids[[row], :length], np.array([0]), start, row)
    held[first] = 5  # rewound
    before = [session.read_cache(1, "value", row, 0, held[row]) for row in range(ROWS)]
    for rows in range(1, ROWS - first + 1):
        where = np.array([min(5, T - 1)] * rows)
        asked = slice(first, first + rows)
        if any(row in full for row in range(first + 1, first + rows)):
            break  # it would be rewound
        found = session.step(ids[asked, 5:6], where, np.zeros((rows, 1), np.int64), first)
        expected = whole(bundle, ids[asked, :6])[:, -1]
        near(found[:, 0], expected, 5e-3)
    for row, block in enumerate(before):
        assert np.array_equal(session.read_cache(1, "value", row, 0, held[row]), block), row


@pytest.mark.parametrize("copied", [False, True])
def test_rows_that_were_written_to_the_end_are_full(copied: bool, opened: Any) -> None:
    session, _ = opened
    block = np.ones((session.config.num_kv_heads, T, session.config.head_dim), np.float32)
    for layer in range(session.config.num_layers):
        for kind in ("key", "value"):
            session.write_cache(layer, kind, 2 if copied else 0, 0, block)
    if copied:
        session.copy_cache(2, 0, T)
    session.step(tokens(2, 1), np.zeros(2, np.int64), np.zeros((2, 1), np.int64), 1)
    assert (session.read_cache(0, "key", 0, 0, T) == 1).all()


def test_a_graph_gives_what_a_plain_run_gives(bundle: Path) -> None:
    results = []
    for use_graphs in (True, False):
        device = FakeDevice()
        session = TensorRtSession(
            bundle,
            record_of(bundle, (PROFILES[:1], PROFILES[1:])),  # separate plans
            device=device,
            open_plan=lambda path, device=device: FakePlan(
                bundle, device, PROFILES[:1] if path.stem == "prefill" else PROFILES[1:]
            ),
            use_graphs=use_graphs,
        )
        with session:
            ids = tokens(1, 12)
            results.append(
                [
                    session.step(ids[:, i : i + 1], np.array([i]), np.zeros((1, 1), int)).copy()
                    for i in range(12)
                ]
            )
        assert (device.calls["capture"] > 0) == use_graphs
    assert np.array_equal(results[0], results[1])


def test_prefill_sets_only_the_shapes_that_change(opened: Any) -> None:
    session, plan = opened
    for start in (0, 16):
        session.step(tokens(1, 16), np.array([start]), np.array([[15]]))
    (prefiller,) = plan.of("prefill")
    assert prefiller.calls["enqueue"] == 4
    assert prefiller.calls[f"shape {contract.INPUT_IDS}"] == 1
    assert prefiller.calls[f"shape {contract.past_name(0, 'key')}"] == 1


def test_only_the_logits_that_are_asked_for_are_copied(opened: Any, device: FakeDevice) -> None:
    session, _ = opened
    session.step(tokens(1, 40), np.array([0]), np.array([[39]]))
    assert device.calls["bytes down"] == session.config.vocab_size * 4


def test_nothing_is_allocated_after_open(opened: Any, device: FakeDevice) -> None:
    session, _ = opened
    before = device.calls["allocate"]
    for index in range(4):
        session.step(tokens(1, 3), np.array([3 * index]), np.array([[2]]))
        session.step(tokens(1, 1), np.array([3 * index]), np.array([[0]]), 1)
    assert device.calls["allocate"] == before


def test_the_cache_is_read_and_written_by_row_and_token(opened: Any) -> None:
    session, _ = opened
    shape = (session.config.num_kv_heads, 5, session.config.head_dim)
    block = np.random.default_rng(0).normal(size=shape).astype(np.float16).astype(np.float32)
    session.write_cache(1, "value", 2, 7, block)
    assert (session.read_cache(1, "value", 2, 7, 12) == block).all()
    assert not session.read_cache(1, "value", 1, 1, T).any()  # opening runs a token at 0
    assert not session.read_cache(1, "key", 2, 1, T).any()
    assert not session.read_cache(1, "value", 2, 12, T).any()


def test_close_frees_everything_and_a_closed_session_says_so(
    opened: Any, device: FakeDevice
) -> None:
    session, plan = opened
    for index in range(3):
        session.step(tokens(1, 1), np.array([index]), np.array([[0]]))
    assert device.graphs and device.live
    session.close()
    session.close()
    assert not device.live and not device.graphs and device.closed and plan.closed
    with pytest.raises(StateError, match="closed"):
        session.step(tokens(1, 1), np.array([0]), np.array([[0]]))


@pytest.mark.parametrize("attention", ["native", "paged"])
@pytest.mark.parametrize("fail_at", range(1, 12))
def test_an_error_while_opening_frees_what_was_taken(
    bundle: Path, fail_at: int, attention: str
) -> None:
    device = FakeDevice(fail_at=fail_at)
    try:
        session = KINDS[attention](
            bundle,
            both_profiles(bundle, attention),
            device=device,
            open_plan=lambda _: plan_of(bundle, device, attention),
        )
    except MachineError:
        assert device.calls["allocate"] == fail_at
    else:
        assert device.calls["allocate"] < fail_at
        session.close()
    assert not device.live and device.closed


class Refusal:
    """How a capture fails: TensorRT refuses the run in it, CUDA its end, or TensorRT says so."""

    def __init__(self, device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device, self.monkeypatch = device, monkeypatch

    def within(self) -> str:
        """CUDA ends a broken capture with an error of its own, which says nothing."""
        plain = FakeContext.enqueue

        def enqueue(context: FakeContext, stream: int) -> None:
            if self.device.recording is not None:
                raise MachineError("TensorRT refuses to run: no such memory")
            plain(context, stream)

        self.monkeypatch.setattr(FakeContext, "enqueue", enqueue)
        self.at_the_end()
        return "no such memory"

    def at_the_end(self) -> str:
        def invalidated() -> object:
            self.device.recording = None
            raise MachineError("cudaErrorStreamCaptureInvalidated")

        self.monkeypatch.setattr(self.device, "end_capture", invalidated)
        return "cudaErrorStreamCaptureInvalidated"

    def before(self) -> str:
        self.monkeypatch.setattr(FakeContext, "capturable", lambda context, stream: False)
        return "cannot be captured"


@pytest.mark.parametrize("how", ["within", "at_the_end", "before"])
def test_decode_goes_on_without_a_graph_that_is_refused_and_says_so(
    how: str,
    bundle: Path,
    device: FakeDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids, zero = tokens(1, 5), np.array([[0]])
    reason = getattr(Refusal(device, monkeypatch), how)()
    with TensorRtSession(
        bundle, record_of(bundle), device=device, open_plan=lambda _: FakePlan(bundle, device)
    ) as session:
        found = [session.step(ids[:, [i]], np.array([i]), zero).copy() for i in range(5)]
        # one window of each number of rows is tried
        assert device.calls["capture"] == (0 if how == "before" else 3)
        assert not device.graphs and not device.calls["launch"]
        told = session.describe()["without_graph"]
    said = [one for one in caplog.messages if "without a CUDA graph" in one]
    assert len(said) == 3 and told.count(reason) == 3
    for rows in (1, 2, 3):
        assert f"{rows} rows: " in told
        assert any(f"steps of {rows} rows" in one and reason in one for one in said)
    monkeypatch.undo()
    other = FakeDevice()
    with TensorRtSession(
        bundle,
        record_of(bundle),
        device=other,
        open_plan=lambda _: FakePlan(bundle, other),
        use_graphs=False,
    ) as plain:
        wanted = [plain.step(ids[:, [i]], np.array([i]), zero).copy() for i in range(5)]
        assert "without_graph" not in plain.describe()
    assert np.array_equal(found, wanted)


def test_another_gpu_is_refused_with_the_remedy(bundle: Path) -> None:
    device = FakeDevice(sm=90)
    record = record_of(bundle)
    with pytest.raises(MachineError, match=r"for sm_89, got a GPU of sm_90.*nemo-trt build"):
        TensorRtSession(bundle, record, device=device, open_plan=lambda _: FakePlan(bundle, device))
    assert device.closed and not device.live


def test_what_does_not_fit_is_refused_before_anything_runs(opened: Any) -> None:
    session, plan = opened
    with pytest.raises(CapacityError, match="64 tokens"):
        session.step(tokens(1, 5), np.array([T - 4]), np.array([[4]]))
    with pytest.raises(RequestError, match="Rows must lie in 0 to 2"):
        session.step(tokens(2, 1), np.zeros(2, np.int64), np.zeros((2, 1), np.int64), 2)
    with pytest.raises(CapacityError, match="max-seq-len"):
        session.bind(T + 1)
    assert all(context.calls["enqueue"] == 2 for context in plan.of("decode"))
    assert not any(context.calls["enqueue"] for context in plan.of("prefill"))


def test_a_runner_generates_on_it_what_it_generates_on_onnx_runtime(
    opened: Any, bundle: Path
) -> None:
    session, _ = opened
    prompts = [[1, 5, 9, 200, 17, 3, 8, 44, 90, 2, 6], [1, 7]]
    params = SamplingParams(max_tokens=6)

    def generated(runner: Runner) -> list[int]:
        return [event.token_id for event in runner.generate(prompts, params)]

    expected = generated(Runner(OrtSession.open(bundle, max_batch=ROWS, max_seq_len=T)))
    assert generated(Runner(session)) == expected


def test_the_command_that_builds_an_engine_again_is_whole(bundle: Path) -> None:
    record = record_of(bundle, (PROFILES[:1], PROFILES[1:]))
    options = replace(
        record.options, opt_level=2, single_plan=False, allow_unfused=True, attention="paged",
        page=32, strip=True,
    )  # fmt: skip
    opened = replace(Bundle.open(bundle), path=Path("my bundle"))
    command = replace(record, options=options).rebuild_command(opened)
    assert shlex.split(command)[:3] == ["nemo-trt", "build", "my bundle"]
    words = shlex.split(command)[2:]
    given = build_command.make_context("build", words).params
    assert Path(given.pop("bundle")) == Path("my bundle") and given.pop("gpu") == "l4"
    assert given["toolchain"] == "tensorrt-rtx"
    derived = {"target", "sm", "max_logits"}
    for name in {field.name for field in fields(options)} - derived:  # an option that is new too
        assert given[name] == getattr(options, name), name


def test_a_log_keeps_what_is_read_and_the_last_lines() -> None:
    class Api:
        class ILogger:
            ERROR, INTERNAL_ERROR = "error", "internal"

            def __init__(self) -> None:
                pass

    written: list[str] = []
    toolkit = Toolkit(name="tensorrt-rtx", version="0", api=Api)
    log = Log(toolkit, keep=READ_LINES, write=written.append)
    log.logger.log("verbose", "Unused Input: a")
    for number in range(10_000):
        log.logger.log("error" if number % 2 else "verbose", str(number))
    assert log.kept == ["Unused Input: a"] and len(written) == 10_001
    assert len(log.lines) < 1000 and len(log.errors) < 1000 and log.errors[-1] == "9999"
