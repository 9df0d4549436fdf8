"""Sampling against a plain, literal reference: full sort, float64, one token at a time."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_trt.engines.sampling import Sampler, SamplingParams
from nemo_trt.errors import BundleError, RequestError

pytestmark = pytest.mark.unit

VOCAB = 60


def literal_distribution(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], answer: list[int]
) -> np.ndarray:
    """Probability of every token, by the definitions and nothing clever."""
    values = [float(x) for x in logits]
    for token in set(prompt) | set(answer):
        penalty = params.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(answer):
        values[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    for token, bias in params.logit_bias.items():
        values[token] += bias
    scaled = np.array(values) / params.temperature
    weights = np.exp(scaled - scaled.max())
    keep = weights >= params.min_p
    if params.top_k:
        keep &= scaled >= sorted(scaled, reverse=True)[min(params.top_k, len(scaled)) - 1]
    weights = np.where(keep, weights, 0)
    if params.top_p < 1:
        total, reached, floor = weights.sum(), 0.0, 0.0
        for weight in sorted(weights, reverse=True):
            reached += weight
            floor = weight
            if reached >= params.top_p * total:
                break
        weights = np.where(weights >= floor, weights, 0)
    return weights / weights.sum()


def drawn_distribution(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], answer: list[int], count: int
) -> np.ndarray:
    """Frequencies of what a sampler with this history draws."""
    found = np.zeros(len(logits))
    sampler = Sampler(params, len(logits), prompt)
    for _ in range(count):
        sampler._seen = dict.fromkeys([*prompt, *answer])
        sampler._counts = {token: answer.count(token) for token in answer}
        found[sampler.sample(logits).token_id] += 1
    return found / count


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 40]),
    top_p=st.sampled_from([0.2, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.6]),
    frequency_penalty=st.sampled_from([0.0, -0.4, 0.8]),
    logit_bias=st.sampled_from([{}, {3: 2.0, 7: -50.0}]),
    seed=st.just(1),
)


@settings(max_examples=60, derandomize=True)
@given(params=PARAMS, seed=st.integers(0, 1000))
def test_draws_follow_the_literal_distribution(params: SamplingParams, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, VOCAB).astype(np.float32)
    prompt, answer = rng.integers(0, VOCAB, 6).tolist(), rng.integers(0, VOCAB, 5).tolist()
    expected = literal_distribution(logits, params, prompt, answer)
    count = 600
    found = drawn_distribution(logits, params, prompt, answer, count)
    assert not found[expected == 0].any()
    support = expected > 0
    statistic = count * (((found - expected)[support] ** 2) / expected[support]).sum()
    freedom = support.sum() - 1
    assert statistic <= freedom + 6 * math.sqrt(2 * freedom) + 25


@settings(max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    params=st.sampled_from(
        [
            SamplingParams(temperature=1.0, top_p=0.9),
            SamplingParams(temperature=1.0, top_k=50),
            SamplingParams(temperature=0.8, top_k=300, top_p=0.5),
            SamplingParams(temperature=1.0, min_p=0.1, top_p=0.99),
        ]
    ),
)
def test_a_large_vocabulary_is_truncated_to_the_same_set(
    seed: int, scale: float, params: SamplingParams
) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, 20_000).astype(np.float32)
    expected = set(np.flatnonzero(literal_distribution(logits, params, [], [])))
    sampler = Sampler(params, logits.size)

    class Spy:
        def random(self) -> float:
            return 0.0

    sampler._random = Spy()  # type: ignore[assignment]
    assert sampler.sample(logits).token_id == min(expected)
    Spy.random = lambda self: 1.0 - 2**-53  # type: ignore[method-assign]
    assert sampler.sample(logits).token_id == max(expected)


def test_greedy_takes_the_likeliest_and_of_equals_the_first() -> None:
    logits = np.array([0.0, 3.0, 1.0, 3.0], np.float32)
    assert Sampler(SamplingParams(), 4).sample(logits).token_id == 1


def test_a_seed_decides_everything() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 500).astype(np.float32)

    def tokens(seed: int, top_p: float) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed, top_p=top_p), 500)
        return [sampler.sample(logits).token_id for _ in range(20)]

    assert tokens(5, 0.9) == tokens(5, 0.9)
    assert tokens(5, 0.9) != tokens(6, 0.9)


def test_the_callers_logits_stay_as_they_are() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 500).astype(np.float32)
    before = logits.copy()
    params = SamplingParams(
        temperature=0.7, top_p=0.5, repetition_penalty=1.5, logit_bias={1: 5.0}, logprobs=3
    )
    sampler = Sampler(params, 500, [1, 2, 3])
    for _ in range(5):
        sampler.sample(logits)
    np.testing.assert_array_equal(logits, before)


def test_logprobs_are_those_of_the_untouched_distribution() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 500).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum())
    params = SamplingParams(temperature=0.3, top_k=2, seed=0, logprobs=5, logit_bias={9: 30.0})
    sampled = Sampler(params, 500).sample(logits)
    assert sampled.token_id == 9
    assert sampled.logprob == pytest.approx(expected[9], abs=1e-5)
    best = np.argsort(-expected)[:5]
    assert [token for token, _ in sampled.top_logprobs] == best.tolist()
    assert [p for _, p in sampled.top_logprobs] == pytest.approx(expected[best], abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error_and_no_token(bad: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[4] = bad
    with pytest.raises(BundleError, match="finite"):
        Sampler(SamplingParams(), 10).sample(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("temperature", 1e300),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("presence_penalty", math.inf),
        ("presence_penalty", -1e300),
        ("frequency_penalty", 1e300),
        ("logit_bias", {1: 1e300}),
        ("logit_bias", {1: math.nan}),
        ("stop", ("",)),
        ("seed", -1),
        ("logprobs", -1),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


@settings(max_examples=200)
@given(
    params=st.builds(
        SamplingParams,
        temperature=st.floats(0, 1e6),
        top_k=st.integers(0, 100),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(1e-3, 1e3),
        presence_penalty=st.floats(-1e6, 1e6),
        frequency_penalty=st.floats(-1e6, 1e6),
        logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-1e6, 1e6), max_size=3),
        seed=st.just(1),
        logprobs=st.sampled_from([None, 0, 5]),
    ),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
)
def test_no_parameter_within_its_range_breaks_the_arithmetic(
    params: SamplingParams, scale: float
) -> None:
    logits = (np.random.default_rng(1).normal(0, 1, VOCAB) * scale).astype(np.float32)
    logits[:3] = -np.inf
    allowed = np.ones(VOCAB, np.bool_)
    allowed[::2] = False
    sampler = Sampler(params, VOCAB, [4, 5])
    for mask in (None, allowed, None):
        token = sampler.sample(logits, mask).token_id  # numpy's warnings are errors here
        assert 3 <= token < VOCAB and (mask is None or mask[token])


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-31])
def test_the_coldest_draws_take_the_likeliest(temperature: float) -> None:
    logits = np.array([0.0, 3.0, 1.0, np.nextafter(np.float32(3), np.float32(0))], np.float32)
    sampler = Sampler(SamplingParams(temperature=temperature, seed=1), 4)
    assert {sampler.sample(logits).token_id for _ in range(20)} == {1}


def test_a_biased_token_must_exist() -> None:
    with pytest.raises(RequestError, match="logit_bias"):
        Sampler(SamplingParams(logit_bias={10: 1.0}), 10)


@pytest.mark.parametrize(
    ("logits", "params", "expected"),
    [
        ([-1.0, -1.1], SamplingParams(repetition_penalty=1.3), 1),  # -1.3: below, not above
        ([1.0, 0.9], SamplingParams(repetition_penalty=1.3), 1),
        ([1.0, 0.9], SamplingParams(repetition_penalty=1.05), 0),
        ([1.0, 0.9], SamplingParams(presence_penalty=5.0), 0),  # a prompt is not the answer
        ([1.0, 0.9], SamplingParams(logit_bias={1: 0.2}), 1),
    ],
)
def test_penalties_move_the_likeliest_token(
    logits: list[float], params: SamplingParams, expected: int
) -> None:
    sampler = Sampler(params, 2, [0])
    assert sampler.sample(np.array(logits, np.float32)).token_id == expected


def test_presence_counts_once_and_frequency_every_time() -> None:
    logits = np.array([1.0, 0.0], np.float32)
    once = Sampler(SamplingParams(presence_penalty=0.6), 2)
    assert [once.sample(logits).token_id for _ in range(4)] == [0, 0, 0, 0]
    each = Sampler(SamplingParams(frequency_penalty=0.6), 2)
    assert [each.sample(logits).token_id for _ in range(4)] == [0, 0, 1, 0]


def test_a_random_number_stays_until_its_token_is_remembered() -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    sampler, expected = Sampler(params, 8), np.random.Generator(np.random.PCG64(5)).random(2)
    assert [sampler.uniform(), sampler.uniform()] == [expected[0]] * 2  # drawn ahead, then asked
    sampler.remember(3)
    assert sampler.uniform() == expected[1]
