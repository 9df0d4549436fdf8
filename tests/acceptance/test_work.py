"""What the stages do, each by itself: rates, FP8's foreseen bytes, what must be here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from nemo_trt.acceptance.work import bench, export, here, plan
from nemo_trt.acceptance.work.done import CannotHere, require_packages
from nemo_trt.bundle import Bundle
from nemo_trt.cli.bench import command as bench_command
from nemo_trt.defaults import ENGINE_SEQ_LEN
from nemo_trt.engines.measure import within
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.rates import batches_up_to, decode_rates, prefill_rates
from nemo_trt.errors import RequestError
from nemo_trt.precision import DType
from nemo_trt.progress import Silent

pytestmark = pytest.mark.model

LENGTHS: dict[str, Any] = {"decode_steps": 4, "engine": None, "progress": Silent()}
CPU: dict[str, Any] = {"cuda_gpu": None, "threads": 1}


@pytest.mark.parametrize(
    ("most", "batches"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_batches_double_up_to_the_last(most: int, batches: list[int]) -> None:
    assert batches_up_to(most) == batches


class Recorded(OrtSession):
    """Keeps the shape and the first position of every step."""

    def _step(self, input_ids: Any, write_indices: Any, logit_indices: Any, first_row: int) -> Any:
        self.seen.append((*input_ids.shape, int(write_indices[0])))
        return super()._step(input_ids, write_indices, logit_indices, first_row)

    seen: list[tuple[int, ...]]


def test_rates_are_of_the_steps_that_they_say(tiny: Any) -> None:
    with Recorded.open(tiny.bundle, max_batch=2, threads=1) as session:
        session.seen = []
        (prefill,) = prefill_rates(session, [9], Silent())
        assert session.seen == [(1, 9, 0)] * 4  # one to warm up
        session.seen.clear()
        one, two = decode_rates(session, [1, 2], [16], 5, Silent())
        assert session.seen == [(rows, 1, 16 + n) for rows in (1, 2) for n in range(5)]
    assert prefill.tokens_per_s == pytest.approx(9 / prefill.step_s)
    assert (one.rows, two.rows, two.tokens) == (1, 2, 16)
    assert two.tokens_per_s == pytest.approx(2 / two.step_s)


def test_the_lower_bound_is_all_that_a_step_reads_over_the_bandwidth(tiny: Any) -> None:
    done = bench.run(bundle=str(tiny.bundle), prefill=[8], decode=[16], **CPU, **LENGTHS)
    facts = done.facts
    config = OrtSession.open(tiny.bundle, threads=1).config
    for one in facts["decode"]:
        weights = 4 * config.num_parameters_per_step
        cache = one["rows"] * 16 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
        assert one["floor_s"] == pytest.approx((weights + cache) / facts["bandwidth_bytes_per_s"])


def test_lengths_past_the_context_are_left_out_and_none_left_is_refused() -> None:
    assert within(40, [8, 80], [16, 37], 4) == ([8], [16])
    with pytest.raises(RequestError, match="within the context of 40 tokens"):
        within(40, [8], [37], 4)


def test_lengths_that_were_left_out_are_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_trt.engines.measure.copy_bandwidth", lambda threads: 1e9)
    command = [str(tiny.bundle), "--prefill", "8", "--prefill", "999999999"]
    command += ["--decode", "16", "--decode", "888888888"]
    done = CliRunner().invoke(bench_command, [*command, "--steps", "2", "--json"])
    found = json.loads(done.stdout)
    assert [one["tokens"] for one in found["prefill"]] == [8]
    assert (found["skipped_prefill"], found["skipped_decode"]) == ([999999999], [888888888])
    done = CliRunner().invoke(bench_command, [*command, "--steps", "2"])
    assert "999999999: too long" in done.stdout and "888888888: too long" in done.stdout


def test_the_bytes_of_an_fp8_bundle_are_foreseen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(f'{{"tokens": [{n}, 7, 99, {n + 1}, 3]}}\n' for n in range(16)))
    common: dict[str, Any] = {
        "checkpoint": str(tiny_checkpoint),
        "precision": "fp8",
        "progress": Silent(),
    }
    done = export.run(
        bundle=str(tmp_path / "fp8"),
        calibration=str(samples),
        samples=None,
        max_kl=100,
        **common,
    )
    foreseen = plan.run(gpu="l4", max_seq_len=64, max_batch=1, **common)
    assert done.facts["fp8_groups"] == done.facts["groups"] > 0
    header = 16_000
    extra = done.facts["weight_bytes"] - foreseen.facts["weight_bytes"]
    assert 0 <= extra < header


def test_a_bundle_that_memory_cannot_hold_is_skipped_with_both_numbers(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.require_cpu_session(Bundle.open(tiny.bundle))
    monkeypatch.setattr(here, "memory_bytes", lambda: 10**6)
    with pytest.raises(CannotHere, match=r"needs about .* GB .* this machine has 0 GB"):
        here.require_cpu_session(Bundle.open(tiny.bundle))


@pytest.mark.parametrize(
    ("precision", "itemsize"), [(DType.BF16, 4), (DType.FP32, 4), (DType.FP16, 2), (DType.FP8, 4)]
)
def test_a_bundle_is_held_twice_in_what_it_computes_in(
    precision: DType, itemsize: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Any = SimpleNamespace(precision=precision, config=SimpleNamespace(num_parameters=10**9))
    monkeypatch.setattr(here, "memory_bytes", lambda: 2 * itemsize * 10**9)
    here.require_cpu_session(bundle)
    monkeypatch.setattr(here, "memory_bytes", lambda: 2 * itemsize * 10**9 - 1)
    with pytest.raises(CannotHere, match=f"needs about {2 * itemsize} GB to load"):
        here.require_cpu_session(bundle)


def test_an_engine_is_planned_for_4096_tokens_where_they_fit(tiny_checkpoint: Path) -> None:
    asked: dict[str, Any] = {"checkpoint": str(tiny_checkpoint), "precision": "bf16", "gpu": "l4"}
    facts = plan.run(max_seq_len=None, max_batch=1, progress=Silent(), **asked).facts
    assert facts["max_seq_len"] == ENGINE_SEQ_LEN == 4096
    facts = plan.run(max_seq_len=8192, max_batch=2, progress=Silent(), **asked).facts
    assert (facts["max_seq_len"], facts["max_batch"]) == (8192, 2)
    assert facts["gpu_bandwidth_bytes_per_s"] == 300 * 10**9
    facts = plan.run(max_seq_len=None, max_batch=40_000, progress=Silent(), **asked).facts
    assert 0 < facts["max_seq_len"] < ENGINE_SEQ_LEN and facts["free_bytes"] >= 0


def test_a_missing_package_is_named_with_its_extra() -> None:
    require_packages("export", "numpy")
    with pytest.raises(CannotHere, match=r"not-there must be installed.*nemo-trt\[gpu\]"):
        require_packages("gpu", "numpy", "not-there")
