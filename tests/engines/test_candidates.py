"""Sampling from candidates gives the token that a plain implementation gives, or gives none."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_trt.engines.candidate_draw import draw_candidates
from nemo_trt.engines.candidates import NUM_CANDIDATES, Candidates, top_candidates
from nemo_trt.engines.draws import Draws
from nemo_trt.engines.sampling import Sampled, Sampler, SamplingParams

from .plain_sampling import plain_token

pytestmark = pytest.mark.unit

VOCAB = 700
SHAPES = [
    "normal", "narrow", "wide", "ties", "flat", "one peak", "mostly -inf", "three tokens",
    "a cliff at K",
]  # fmt: skip


def logits_of(shape: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, VOCAB).astype(np.float32)
    if shape == "narrow":
        logits *= np.float32(0.01)
    elif shape == "wide":
        logits *= np.float32(8)
    elif shape == "ties":
        logits = np.round(logits)
    elif shape == "flat":
        logits[:] = 1.5
    elif shape == "one peak":
        logits[rng.integers(VOCAB)] += 40
    elif shape == "mostly -inf":
        logits[rng.random(VOCAB) < 0.7] = -np.inf
    elif shape == "three tokens":
        logits[3:] = -np.inf
    elif shape == "a cliff at K":  # as many equals above as candidates, and below
        logits[:] = -1
        logits[rng.permutation(VOCAB)[:NUM_CANDIDATES]] = 1
    return logits


def sample_candidates(
    candidates: Candidates, samplers: list[Sampler], masks: list[Any], uniforms: list[float]
) -> list[Sampled | None]:
    """What was chosen at each position; None where the candidates do not decide."""
    drawn = draw_candidates(candidates, Draws(samplers, masks, uniforms))
    undecided = set(drawn.undecided)
    return [None if row in undecided else drawn.take(row) for row in range(len(candidates))]


def as_ordered_by_a_device(candidates: Candidates, seed: int = 0) -> Candidates:
    """The same, but for equals, which stand in any order."""
    anyhow = np.random.default_rng(seed).random(candidates.ids.shape)
    order = np.lexsort((anyhow, -candidates.logits), axis=1)
    ids = np.take_along_axis(candidates.ids, order, axis=1).astype(np.int32)
    return replace(candidates, ids=ids)


def rounded(candidates: Candidates, seed: int) -> Candidates:
    """As a device would sum: up to half of the error that is allowed for."""
    error = np.random.default_rng(seed).uniform(-5e-5, 5e-5, (2, len(candidates)))
    return replace(
        candidates,
        mass=(candidates.mass * (1 + error[0])).astype(np.float32),
        mass_tempered=(candidates.mass_tempered * (1 + error[1])).astype(np.float32),
    )


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0, 4.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 256, 300]),
    top_p=st.sampled_from([0.2, 0.5, 0.9, 1.0, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.6, -0.6]),
    frequency_penalty=st.sampled_from([0.0, 0.8, -0.4]),
    logit_bias=st.sampled_from([{}, {}, {3: -20.0}, {3: 30.0, 600: -5.0}]),
    seed=st.just(1),
)
ROW = st.tuples(
    PARAMS,
    st.sampled_from(SHAPES),
    st.integers(0, 10_000),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 0.9, 0.999, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=150, derandomize=True)
@given(rows=st.lists(ROW, min_size=1, max_size=4))
def test_a_token_from_candidates_is_the_plain_one(rows: list[Any]) -> None:
    logits, masks, samplers, expected = [], [], [], []
    for params, shape, seed, masked, uniform in rows:
        rng = np.random.default_rng(seed)
        one = logits_of(shape, seed)
        prompt, answer = rng.integers(0, VOCAB, 6).tolist(), rng.integers(0, VOCAB, 4).tolist()
        prompt.append(int(one.argmax()))
        mask = rng.random(VOCAB) < 0.5 if masked else None
        if mask is not None:
            mask[np.flatnonzero(np.isfinite(one))[:2]] = True
        logits.append(one)
        masks.append(mask)
        samplers.append(sampler_of(params, prompt, answer))
        expected.append(plain_token(one, params, prompt, answer, mask, uniform))
    uniforms = [row[-1] for row in rows]
    temperatures = np.array([row[0].temperature for row in rows], np.float32)
    exact = top_candidates(np.array(logits), temperatures)
    given = as_ordered_by_a_device(rounded(exact, rows[0][2]), rows[0][2])
    found = sample_candidates(given, samplers, masks, uniforms)
    for row, sampled in enumerate(found):
        if sampled is None:  # the whole row decides
            sampled = samplers[row].choose(logits[row], masks[row], uniforms[row])
        if expected[row] is not None:
            assert sampled.token_id == expected[row], rows[row]


GRID = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(temperature=1.0, min_p=1.0),
    SamplingParams(temperature=1.0, top_p=0.5),
    SamplingParams(temperature=1.0, top_k=300, top_p=0.9),
    SamplingParams(temperature=1.0, repetition_penalty=0.5),
    SamplingParams(temperature=1.0, frequency_penalty=-9.0),
    SamplingParams(temperature=1.0, logit_bias={699: 9.0}),
    SamplingParams(repetition_penalty=0.01),
    SamplingParams(logit_bias={699: 9.0}),
]


@pytest.mark.parametrize("shape", ["flat", "ties", "a cliff at K", "narrow", "normal"])
@pytest.mark.parametrize("params", GRID, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_what_the_candidates_leave_open_is_not_guessed(
    shape: str, params: SamplingParams, masked: bool
) -> None:
    logits = logits_of(shape, 5)
    prompt, answer = list(range(670, 690)), [693, 694, 695]
    mask = np.arange(VOCAB) % 3 != 0 if masked else None
    candidates = top_candidates(logits[None], np.array([params.temperature], np.float32))
    for uniform in np.linspace(0, 0.999, 15).tolist():
        expected = plain_token(logits, params, prompt, answer, mask, uniform)
        sampler = sampler_of(params, prompt, answer)
        (found,) = sample_candidates(candidates, [sampler], [mask], [uniform])
        assert found is None or expected in (None, found.token_id)


def test_of_equals_at_the_edge_no_device_decides() -> None:
    flat = top_candidates(np.zeros((1, VOCAB), np.float32), np.zeros(1, np.float32))
    others = replace(flat, ids=flat.ids + VOCAB - NUM_CANDIDATES)  # the last instead of the first
    assert sample_candidates(others, [Sampler(SamplingParams(), VOCAB)], [None], [0.0]) == [None]


@pytest.mark.parametrize("error", [-9e-5, 9e-5])
def test_a_sum_that_is_a_little_wrong_moves_no_token(error: float) -> None:
    logits = np.random.default_rng(2).normal(0, 2, VOCAB).astype(np.float32)
    exact = top_candidates(logits[None], np.ones(1, np.float32))
    wrong = replace(exact, mass_tempered=(exact.mass_tempered * (1 + error)).astype(np.float32))
    weights = np.exp(exact.logits[0] - logits.max(), dtype=np.float64)
    cumulative = np.cumsum(weights) / float(exact.mass_tempered[0])
    for share in cumulative[:100:3].tolist():  # where one token ends and the next begins
        for near in (share * (1 - 2e-5), share * (1 + 2e-5)):
            for params, uniform in (
                (SamplingParams(temperature=1.0), near),
                (SamplingParams(temperature=1.0, top_p=near), 0.999),
            ):
                expected = plain_token(logits, params, [], [], None, uniform)
                (found,) = sample_candidates(wrong, [Sampler(params, VOCAB)], [None], [uniform])
                assert found is None or found.token_id == expected


def sampler_of(params: SamplingParams, prompt: list[int], answer: list[int]) -> Sampler:
    sampler = Sampler(params, VOCAB, prompt)
    for token in answer:
        sampler.remember(token)
    return sampler


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=1.0, top_k=50),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, min_p=0.02, top_p=0.95),
        SamplingParams(temperature=0.7, top_p=0.9, frequency_penalty=0.5, presence_penalty=0.5),
        SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.1, logprobs=20),
    ],
    ids=str,
)
def test_candidates_suffice_where_a_language_model_is_sure_of_something(
    params: SamplingParams,
) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (200, 20_000)).astype(np.float32)
    for row in logits:
        row[rng.integers(0, 20_000, 20)] += rng.normal(14, 2, 20)
    samplers = [Sampler(params, 20_000, [1, 2, int(row.argmax())]) for row in logits]
    candidates = top_candidates(logits, np.full(200, params.temperature, np.float32))
    found = sample_candidates(candidates, samplers, [None] * 200, rng.random(200).tolist())
    assert sum(one is None for one in found) <= 4


def test_whatever_is_not_finite_is_left_to_the_whole_row() -> None:
    logits = np.zeros((4, VOCAB), np.float32)
    logits[0, 500], logits[1, 400], logits[2] = np.nan, np.inf, -np.inf
    logits[3, 7] = 9
    candidates = top_candidates(logits, np.zeros(4, np.float32))
    samplers = [Sampler(SamplingParams(), VOCAB) for _ in logits]
    found = sample_candidates(candidates, samplers, [None] * 4, [0.0] * 4)
    assert found[:3] == [None] * 3
    assert found[3] and found[3].token_id == 7


def test_logprobs_are_those_of_the_whole_row() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (1, VOCAB)).astype(np.float32)
    params = SamplingParams(temperature=0.3, top_k=2, seed=0, logprobs=5, logit_bias={9: -3.0})
    candidates = top_candidates(logits, np.array([0.3], np.float32))
    (found,) = sample_candidates(candidates, [Sampler(params, VOCAB)], [None], [0.4])
    whole = Sampler(params, VOCAB).choose(logits[0], None, 0.4)
    assert found and found.token_id == whole.token_id
    assert found.logprob == pytest.approx(whole.logprob, abs=1e-5)
    assert [token for token, _ in found.top_logprobs] == [t for t, _ in whole.top_logprobs]
    assert [p for _, p in found.top_logprobs] == pytest.approx(
        [p for _, p in whole.top_logprobs], abs=1e-5
    )
    many = SamplingParams(logprobs=NUM_CANDIDATES + 1)
    assert sample_candidates(candidates, [Sampler(many, VOCAB)], [None], [0.0]) == [None]


@pytest.mark.parametrize("temperature", [0.8, 1.6])
def test_draws_from_candidates_follow_the_distribution(temperature: float) -> None:
    logits = np.random.default_rng(4).normal(0, 2, VOCAB).astype(np.float32)
    params, count = SamplingParams(temperature=temperature, seed=3), 4000
    expected = np.exp(logits.astype(np.float64) / temperature)
    expected /= expected.sum()
    sampler, drawn = Sampler(params, VOCAB), np.zeros(VOCAB)
    candidates = top_candidates(logits[None], np.array([temperature], np.float32))
    for _ in range(count):
        uniform = sampler.uniform()
        (found,) = sample_candidates(candidates, [sampler], [None], [uniform])
        drawn[(found or sampler.choose(logits, None, uniform)).token_id] += 1
    statistic = ((drawn - count * expected) ** 2 / (count * expected)).sum()
    freedom = VOCAB - 1
    assert statistic <= freedom + 6 * math.sqrt(2 * freedom) + 25
