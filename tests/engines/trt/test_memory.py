"""An engine's device memory is summed and refused before anything is allocated or loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.trt.memory import GRAPH_BYTES, device_memory
from nemo_trt.engines.trt.session import TensorRtSession
from nemo_trt.errors import MachineError
from nemo_trt.precision import DType

from .fake_device import FakeDevice
from .properties import tokens
from .standin import CHUNK, LOGITS, ROWS, FakePlan, T, paged_of, record_of
from .test_session import bundle

pytestmark = pytest.mark.model
__all__ = ["bundle"]  # the fixture


def heavy(bundle: Path) -> Any:
    """A record with a plan of 3 GB and 1 GB of scratch."""
    record = record_of(bundle)
    scratch = dict.fromkeys(record.plans[0].profiles, 10**9)
    return replace(
        record, plans=(replace(record.plans[0], num_bytes=3 * 10**9, scratch_bytes=scratch),)
    )


def test_the_sum_is_one_that_anyone_can_do_and_is_refused_with_numbers(bundle: Path) -> None:
    device, opened, record = FakeDevice(), [], heavy(bundle)

    def open_plan(path: Path) -> FakePlan:
        opened.append(path)
        return FakePlan(bundle, device)

    config = FakePlan(bundle, device).config
    io = 8 * CHUNK + 8 * ROWS + 8 * LOGITS + 4 * ROWS + 4 * ROWS
    candidates = 2 * 4 * 256 + 2 * 256  # tokens and logits, and two sums with room to align
    io += LOGITS * (4 * config.vocab_size + candidates)
    cache = 2 * config.num_layers * ROWS * config.num_kv_heads * T * config.head_dim * 2
    needed = 3 * 10**9 + 10**9 + io + cache + 5 * GRAPH_BYTES
    device.total_memory = needed - 1
    said = r"l4-fp16 must have 4\.08 GB .*plans 3\.00, KV cache 0\.00, scratch 1\.00.*got 4\.08 GB"
    with pytest.raises(MachineError, match=said):
        TensorRtSession(bundle, record, device=device, open_plan=open_plan)
    assert not opened and not device.calls["allocate"] and device.closed
    device.total_memory = needed
    TensorRtSession(bundle, record, device=device, open_plan=open_plan).close()
    assert opened


def test_pages_need_room_for_a_row_at_least(bundle: Path) -> None:
    record = record_of(bundle)
    config = FakePlan(bundle, FakeDevice()).config
    paged = replace(record, options=replace(record.options, attention="paged", page=48))
    memory = device_memory(paged, config, io_bytes=0, num_windows=0)
    assert memory.cache == 96 * config.kv_bytes_per_token(DType.FP16)  # two pages of 48 for 64
    assert memory.total == memory.cache
    (first, *rest) = [(1.0, 1.0)] + [None] * (config.num_layers - 1)  # FP8 in the first alone
    fp8 = replace(paged, paged=paged_of(bundle, {0: first}))
    half = device_memory(fp8, config, io_bytes=0, num_windows=0).cache
    assert half == 96 * 2 * config.kv_size * (1 + 2 * len(rest))


def test_logits_are_copied_to_pinned_memory(bundle: Path) -> None:
    device = FakeDevice()
    with TensorRtSession(
        bundle, record_of(bundle), device=device, open_plan=lambda _: FakePlan(bundle, device)
    ) as session:
        session.step(tokens(1, 20), np.array([0]), np.arange(20)[None])
        session.step(tokens(2, 1), np.array([20, 0]), np.zeros((2, 1), np.int64))
        assert device.calls["download"] > 5 and not device.calls["pageable down"]
