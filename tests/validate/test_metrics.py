"""Metrics against their literal formulas, and what they say of ties and of broken logits."""

import itertools
import math

import numpy as np
import pytest

from nemo_trt.errors import RequestError
from nemo_trt.tolerances import TOLERANCES, tolerance_of
from nemo_trt.validate.metrics import compare, negative_log_likelihood

pytestmark = pytest.mark.unit

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(0, 2, (6, 40)).astype(np.float32)
ENGINE = (REFERENCE + RNG.normal(0, 0.1, (6, 40))).astype(np.float32)


def test_every_metric_is_its_literal_formula() -> None:
    metrics = compare(ENGINE, REFERENCE, noise=0.0)
    for index, (engine, reference) in enumerate(zip(ENGINE, REFERENCE, strict=True)):
        e, r = [float(x) for x in engine], [float(x) for x in reference]
        errors = [abs(a - b) for a, b in zip(e, r, strict=True)]
        norm = math.sqrt(sum(x * x for x in r))
        p = [math.exp(x) / sum(math.exp(y) for y in r) for x in r]
        q = [math.exp(x) / sum(math.exp(y) for y in e) for x in e]
        dot = sum(a * b for a, b in zip(e, r, strict=True))
        best, theirs = (sorted(range(40), key=lambda i: -x[i])[:5] for x in (r, e))
        assert metrics.max_abs[index] == pytest.approx(max(errors))
        assert metrics.mean_abs[index] == pytest.approx(sum(errors) / 40)
        assert metrics.relative_l2[index] == pytest.approx(
            math.sqrt(sum(x * x for x in errors)) / norm
        )
        assert metrics.cosine[index] == pytest.approx(dot / norm / math.sqrt(sum(x * x for x in e)))
        assert metrics.kl[index] == pytest.approx(
            sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-12
        )
        assert metrics.top1[index] == (best[0] == theirs[0])
        assert metrics.top5[index] == pytest.approx(len(set(best) & set(theirs)) / 5)


def test_a_tie_within_the_references_noise_is_no_disagreement() -> None:
    reference = np.array([[3.0, 2.9999, 1.0, 0.5, 0.2, 0.1, 0.0]], np.float32)
    engine = np.array([[2.9999, 3.0, 1.0, 0.5, 0.2, 0.1, 0.0]], np.float32)
    assert compare(engine, reference, noise=0.0).top1[0] == 0
    assert compare(engine, reference, noise=1e-4).top1[0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_agree_with_nothing(bad: float) -> None:
    engine = REFERENCE.copy()
    engine[2, 5] = bad
    metrics = compare(engine, REFERENCE, noise=0.0)
    assert metrics.relative_l2[2] == np.inf and metrics.kl[2] == np.inf
    assert (metrics.top1[2], metrics.top5[2], metrics.cosine[2]) == (0, 0, 0)
    assert metrics.relative_l2[1] == 0 and metrics.top1[1] == 1


def test_likelihood_is_the_logarithm_of_the_softmax() -> None:
    found = negative_log_likelihood(REFERENCE, np.arange(6))
    for index, row in enumerate(REFERENCE):
        probability = math.exp(row[index]) / sum(math.exp(float(x)) for x in row)
        assert found[index] == pytest.approx(-math.log(probability), rel=1e-5)


def test_nothing_is_judged_by_a_guess() -> None:
    with pytest.raises(RequestError, match="int4"):
        tolerance_of("int4")
    assert set(TOLERANCES) >= {"fp32", "fp16", "bf16"}


def test_a_looser_precision_has_looser_limits() -> None:
    order = [TOLERANCES[name] for name in ("fp32", "fp16", "bf16")]
    for tight, loose in itertools.pairwise(order):
        assert tight.max_relative_l2 < loose.max_relative_l2
        assert tight.max_kl < loose.max_kl and tight.mean_kl < loose.mean_kl
        assert tight.min_top1 >= loose.min_top1
