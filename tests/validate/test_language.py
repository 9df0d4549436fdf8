"""The absolute check of perplexity: it needs no second reader to see a wrong one."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.tensors import renamed
from nemo_trt.tolerances import MAX_PERPLEXITY, language_failures
from nemo_trt.validate import reference as reference_module
from nemo_trt.validate.language import unjudged
from nemo_trt.validate.reading.own import OwnWeights
from nemo_trt.validate.texts import HELD_OUT

from .judge import Judge

pytestmark = pytest.mark.e2e


def _of_layer(name: str, last: int) -> str:
    """The weight of the layer that is as far from the last as `name`'s is from the first."""
    return re.sub(r"layers\.(\d+)", lambda found: f"layers.{last - int(found[1])}", name)


def test_a_fault_that_engine_and_reference_share_fails(
    sample_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if no other reader existed, and ours took the layers in another order."""
    sound = open_checkpoint(sample_bundle.checkpoint)
    last = sound.config.num_layers - 1
    tensors = {name: renamed(sound.tensors[_of_layer(name, last)], name) for name in sound.tensors}
    faulty = replace(sound, tensors=tensors, weight_files=())
    monkeypatch.setattr(
        reference_module, "open_weights", lambda checkpoint, model: OwnWeights(checkpoint)
    )
    export_bundle(faulty, tmp_path / "bundle")
    judge = Judge(faulty, tmp_path / "bundle", prompts=HELD_OUT[:3])
    report = judge(tmp_path / "bundle")
    assert report.verdict == "fail" and not any(case.failures for case in report.cases)
    assert len(report.failures) == 2 and "no language model" in report.failures[0]
    judge = Judge(sound, sample_bundle.bundle, prompts=HELD_OUT[:3])
    assert judge(sample_bundle.bundle).verdict == "pass"


def test_only_the_built_in_texts_of_real_weights_are_judged(sample_bundle: Any) -> None:
    checkpoint = open_checkpoint(sample_bundle.checkpoint)
    sequences = Judge(
        sample_bundle.checkpoint, sample_bundle.bundle, prompts=HELD_OUT[:1]
    ).sequences
    built_in = replace(sequences, origin="built-in")
    assert unjudged(checkpoint, built_in) is None
    assert "random" in str(unjudged(replace(checkpoint, random_weights=True), built_in))
    assert "tokenizer" in str(unjudged(checkpoint, replace(sequences, origin="random")))
    assert "built-in" in str(unjudged(checkpoint, replace(sequences, origin="given")))


@pytest.mark.parametrize("value", [MAX_PERPLEXITY + 0.1, float("inf"), float("nan")])
def test_what_is_no_number_fails_too(value: float) -> None:
    assert language_failures({"engine": MAX_PERPLEXITY}) == ()
    assert len(language_failures({"engine": value, "reference": 5.0})) == 1
