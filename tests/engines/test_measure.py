"""What `measure` counts of an engine's cache, over rates that are given."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.engines import measure as measuring
from nemo_trt.engines.machine import Gpu
from nemo_trt.engines.measure import measure
from nemo_trt.engines.planned import step_bytes
from nemo_trt.engines.rates import Rate
from nemo_trt.engines.targets import target_named
from nemo_trt.manifest import read_manifest
from nemo_trt.precision import DType
from tests.engines.trt.standin import paged_of, record_of

pytestmark = pytest.mark.unit


def test_an_fp8_cache_is_counted_by_layer(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(
        path=tiny.bundle, manifest=replace(read_manifest(tiny.bundle), precision=DType.FP8)
    )
    record = replace(record_of(tiny.bundle), precision="fp8")
    session = SimpleNamespace(
        bundle=bundle, max_batch=2, compute_precision="fp8", describe=lambda: {"backend": "fake"}
    )

    @contextmanager
    def open_session(*_: Any, **__: Any) -> Any:
        yield session

    rate = Rate(tokens=32, rows=2, step_s=0.5, tokens_per_s=4.0)
    l4 = Gpu(name="NVIDIA L4", sm=89, memory="23034 MiB", driver="580.1")
    monkeypatch.setattr(measuring, "gpus", lambda: (l4,))
    monkeypatch.setattr(measuring, "open_session", open_session)
    monkeypatch.setattr(measuring, "prefill_rates", lambda *_: [rate])
    monkeypatch.setattr(measuring, "decode_rates", lambda *_: [rate])
    layer = 2 * bundle.config.kv_size  # numbers of a token
    scale = (1.0, 1.0)
    for fp8, expected in (
        (None, 4 * layer),
        ({}, 4 * layer),
        ({0: scale}, 3 * layer),
        ({0: scale, 1: scale}, 2 * layer),
    ):
        # None: an engine with TensorRT's own attention.
        paged = None if fp8 is None else replace(paged_of(tiny.bundle, fp8), compute="bf16")
        monkeypatch.setattr(
            measuring, "read_record", lambda *_, paged=paged, **__: replace(record, paged=paged)
        )
        found = measure(bundle, "l4-fp8", prefill_lengths=(8,), decode_lengths=(8,))
        assert found.kv_bytes_per_token == expected
        bandwidth = target_named("l4").bandwidth_gb_s * 1e9
        (decode,) = found.decode
        assert decode.floor_s == (step_bytes(bundle) + 2 * 32 * expected) / bandwidth
