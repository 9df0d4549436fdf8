"""The absolute check of perplexity: it needs no second reader to see a wrong one."""

from dataclasses import replace
from typing import Any

import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.tolerances import MAX_PERPLEXITY, language_failures
from nemo_trt.validate.language import unjudged
from nemo_trt.validate.sequences import make_sequences
from nemo_trt.validate.texts import HELD_OUT

from .judge import Judge

pytestmark = pytest.mark.e2e


def test_a_fault_that_engine_and_reference_share_fails(shallow: Any) -> None:
    """As if every reader lost all layers but four."""
    judge = Judge(shallow.checkpoint, shallow.bundle, prompts=HELD_OUT[:3])
    report = judge(shallow.bundle)
    assert report.verdict == "fail" and not any(case.failures for case in report.cases)
    assert len(report.failures) == 2 and "no language model" in report.failures[0]


def test_the_whole_real_model_passes(sample_bundle: Any) -> None:
    judge = Judge(sample_bundle.checkpoint, sample_bundle.bundle, prompts=HELD_OUT[:3])
    assert judge(sample_bundle.bundle).verdict == "pass"


def test_only_the_built_in_texts_of_real_weights_are_judged(shallow: Any) -> None:
    checkpoint = open_checkpoint(shallow.checkpoint)
    with OrtSession.open(shallow.bundle, max_seq_len=256) as session:
        sequences = make_sequences(session, open_tokenizer(shallow.checkpoint), HELD_OUT[:1])
    built_in = replace(sequences, origin="built-in")
    assert unjudged(checkpoint, built_in) is None
    assert "random" in str(unjudged(replace(checkpoint, random_weights=True), built_in))
    assert "tokenizer" in str(unjudged(checkpoint, replace(sequences, origin="random")))
    assert "built-in" in str(unjudged(checkpoint, replace(sequences, origin="given")))


@pytest.mark.parametrize("value", [MAX_PERPLEXITY + 0.1, float("inf"), float("nan")])
def test_what_is_no_number_fails_too(value: float) -> None:
    assert language_failures({"engine": MAX_PERPLEXITY}) == ()
    assert len(language_failures({"engine": value, "reference": 5.0})) == 1
