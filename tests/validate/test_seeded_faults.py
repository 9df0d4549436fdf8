"""The validator fails every seeded fault on the tiny model, and on real weights those that random
ones show badly. That a whole real model passes is seen in test_language.py."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.errors import MachineError, RequestError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.samples import write_seeded
from nemo_trt.validate.texts import PROMPTS
from nemo_trt.validate.validator import validate

from . import faults
from .judge import CAPACITY, Judge, failed

pytestmark = pytest.mark.model

Fault = Callable[[Path, Path], Path]


def graph(edit: faults.GraphEdit) -> Fault:
    return lambda bundle, target: faults.copy_with(bundle, target, graph=edit)


def weights(edit: faults.WeightEdit) -> Fault:
    return lambda bundle, target: faults.copy_with(bundle, target, weights=edit)


def faults_of(head_dim: int) -> dict[str, Fault]:
    return {
        "rope theta off by a factor 1.01": graph(faults.theta_off_by_one_percent),
        "q and k rows permuted": weights(partial(faults.q_and_k_rows_permuted, head_dim=head_dim)),
        "two layers swapped": graph(faults.two_layers_swapped),
        "one weight tensor zeroed": weights(faults.one_tensor_zeroed),
        "norm eps 1e-3": graph(faults.norm_eps_of_a_thousandth),
        "cache write off by one": graph(faults.cache_write_off_by_one),
        "causal mask off by one": graph(faults.causal_mask_off_by_one),
        "kv heads rolled": graph(faults.kv_heads_rolled),
        "logits of the wrong position": graph(faults.logits_of_the_position_before),
    }


TINY = {
    **faults_of(head_dim=16),
    "head_dim = dim / heads": graph(partial(faults.head_dim_by_division, wrong=20, right=16)),
}
# What random weights hardly show, or show otherwise than a language model does.
ON_LANGUAGE = (
    "rope theta off by a factor 1.01",
    "one weight tensor zeroed",
    "norm eps 1e-3",
    "causal mask off by one",
)
SAMPLE = {name: faults_of(head_dim=64)[name] for name in ON_LANGUAGE}


@pytest.fixture(scope="module")
def judge_tiny(tiny: Any) -> Judge:
    return Judge(tiny.checkpoint, tiny.bundle)


@pytest.fixture(scope="module")
def judge_shallow(shallow: Any) -> Judge:
    return Judge(shallow.checkpoint, shallow.bundle, prompts=PROMPTS[:3])


# The cases that must see a fault; faults of the cache alone are seen where the cache is read back.
SEEN_IN = {
    "cache write off by one": {"stepwise decode", "chunked prefill"},
    "causal mask off by one": {"whole prefill", "stepwise decode"},
    # In a step of one token there is no position before.
    "logits of the wrong position": {"whole prefill", "ragged batch"},
}


def test_the_bundle_without_a_fault_passes(tiny: Any, judge_tiny: Judge) -> None:
    assert judge_tiny(tiny.bundle).verdict == "pass"


def test_a_copied_bundle_without_a_fault_passes(
    tiny: Any, judge_tiny: Judge, tmp_path: Path
) -> None:
    assert judge_tiny(faults.copy_with(tiny.bundle, tmp_path / "copy")).verdict == "pass"


@pytest.mark.parametrize("name", TINY)
def test_a_fault_in_the_tiny_model_fails(
    name: str, tiny: Any, judge_tiny: Judge, tmp_path: Path
) -> None:
    report = judge_tiny(TINY[name](tiny.bundle, tmp_path / "faulty"))
    assert report.verdict == "fail"
    if name == "rope theta off by a factor 1.01":  # random attention hardly looks at positions
        assert failed(report) >= {"long position"}
        return
    assert SEEN_IN.get(name, {"whole prefill", "stepwise decode", "ragged batch"}) <= failed(report)


def test_only_positions_far_out_show_positions_in_fp16(tiny: Any, tmp_path: Path) -> None:
    judge = Judge(tiny.checkpoint, tiny.bundle, capacity=3000)
    assert judge(tiny.bundle).verdict == "pass"
    faulty = faults.copy_with(tiny.bundle, tmp_path / "faulty", graph=faults.positions_in_fp16)
    assert failed(judge(faulty)) == {"long position"}


def test_only_a_poisoned_tail_shows_an_engine_that_leaks_a_little_of_it(
    tiny: Any, judge_tiny: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaks(self: OrtSession, *arguments: Any) -> Any:
        logits = step(self, *arguments)
        end = int(arguments[1][0]) + arguments[0].shape[1]
        tail = self._read(0, "value", 0, end, end + 1)
        return logits + 1e-6 * tail.mean() if tail.size else logits

    step = OrtSession._step
    monkeypatch.setattr(OrtSession, "_step", leaks)
    # What was poisoned still stands behind the tokens of the last case.
    assert failed(judge_tiny(tiny.bundle)) == {"poisoned tail", "long position"}


def test_an_engine_that_breaks_has_failed_the_case(
    tiny: Any, judge_tiny: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: OrtSession, *arguments: Any) -> Any:
        if self.max_batch > 1 and arguments[0].shape[0] > 1:
            raise MachineError("out of memory")
        return step(self, *arguments)

    step = OrtSession._step
    monkeypatch.setattr(OrtSession, "_step", breaks)
    report = judge_tiny(tiny.bundle)
    assert report.verdict == "fail" and failed(report) == {"ragged batch", "runner"}
    assert "out of memory" in report.to_json()


def test_a_checkpoint_of_another_shape_is_refused(
    tiny: Any, judge_tiny: Judge, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_seeded(other, replace(judge_tiny.checkpoint.config, intermediate_size=224))
    with (
        OrtSession.open(tiny.bundle, max_seq_len=CAPACITY) as session,
        pytest.raises(RequestError, match="another shape"),
    ):
        validate(session, open_checkpoint(other), judge_tiny.sequences, bundle_id="", engine={})


def test_no_case_fails_on_real_weights_without_a_fault(shallow: Any, judge_shallow: Judge) -> None:
    assert not failed(judge_shallow(shallow.bundle))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_fault_in_real_weights_fails(
    name: str, shallow: Any, judge_shallow: Judge, tmp_path: Path
) -> None:
    report = judge_shallow(SAMPLE[name](shallow.bundle, tmp_path / "faulty"))
    assert SEEN_IN.get(name, {"whole prefill", "stepwise decode", "ragged batch"}) <= failed(report)
