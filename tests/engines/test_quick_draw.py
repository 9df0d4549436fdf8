"""What few candidates decide is what the whole row gives, and they decide nearly always."""

import numpy as np
import pytest

from nemo_trt.engines.candidates import NUM_CANDIDATES, top_candidates
from nemo_trt.engines.draws import Settings
from nemo_trt.engines.quick_draw import WIDTH, quick_draw
from nemo_trt.engines.sampling import Sampler, SamplingParams

from .test_candidates import SHAPES, VOCAB, as_ordered_by_a_device, logits_of

pytestmark = pytest.mark.unit

QUICK = [
    SamplingParams(),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.0, top_p=0.5, top_k=VOCAB),
    SamplingParams(temperature=3.0, top_p=0.999),
    SamplingParams(temperature=0.2, top_p=0.05),
]
OTHERS = [
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.7, top_p=0.9, top_k=5),
    SamplingParams(temperature=0.7, top_p=0.9, min_p=0.1),
]


def rounded_normal(seed: int) -> np.ndarray:
    """As a BF16 head gives them: many equals, among them at the nucleus' edge."""
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(0, 1, VOCAB) * 2).astype(np.float32) / 2
    logits[random.integers(0, VOCAB, 8)] += np.float32(9)
    logits[random.permutation(VOCAB)[: seed % 50]] = np.float32(8.5)  # more equals than fit
    return logits


@pytest.mark.parametrize("params", QUICK, ids=str)
def test_a_row_that_is_sure_has_the_token_of_the_whole_row(params: SamplingParams) -> None:
    logits = [logits_of(shape, seed) for shape in SHAPES for seed in range(4)]
    logits = np.array([*logits, *map(rounded_normal, range(60))])
    count = len(logits)
    uniforms = np.random.default_rng(1).random(count)
    exact = top_candidates(logits, np.full(count, params.temperature, np.float32))
    candidates = as_ordered_by_a_device(exact)
    with np.errstate(all="ignore"):
        tokens, sure = quick_draw(candidates, Settings([params] * count, VOCAB), uniforms, 1e-4)
    for row in np.flatnonzero(sure):
        whole = Sampler(params, VOCAB).choose(logits[row], None, float(uniforms[row]))
        assert tokens[row] == whole.token_id, row
    assert sure.sum() >= (4 if params.temperature == 3 else count // 4)


def test_what_needs_more_is_left_to_others() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (3, VOCAB)).astype(np.float32)
    logits[:, 7] += 30
    candidates = top_candidates(logits, np.full(3, 0.7, np.float32))
    uniforms = np.full(3, 0.5)
    for params in OTHERS:
        _, sure = quick_draw(candidates, Settings([params] * 3, VOCAB), uniforms, 1e-4)
        assert not sure.any()
    mixed = Settings([QUICK[0], OTHERS[0], QUICK[1]], VOCAB)
    tokens, sure = quick_draw(candidates, mixed, uniforms, 1e-4)
    assert sure.tolist() == [True, False, True]
    assert tokens[[0, 2]].tolist() == [7, 7]


@pytest.mark.parametrize("others", [QUICK[0], QUICK[1]], ids=str)
def test_of_a_greedy_row_whose_likeliest_has_an_equal_nothing_is_said(
    others: SamplingParams,
) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (3, VOCAB)).astype(np.float32)
    logits[:, 7] += 30
    logits[1, [300, 500]] = 50
    candidates = top_candidates(logits, np.full(3, others.temperature, np.float32))
    params = Settings([others, SamplingParams(), others], VOCAB)
    tokens, sure = quick_draw(candidates, params, np.full(3, 0.2), 1e-4)
    assert sure.tolist() == [True, False, True]
    assert tokens[[0, 2]].tolist() == [7, 7]


@pytest.mark.parametrize("params", QUICK[:2], ids=str)
def test_of_a_row_that_does_not_descend_nothing_is_said(params: SamplingParams) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (3, VOCAB)).astype(np.float32)
    logits[:, 7] += 30
    candidates = top_candidates(logits, np.full(3, 0.7, np.float32))
    for array in (candidates.ids, candidates.logits):
        array[1, 200:202] = array[1, 201:199:-1]
    _, sure = quick_draw(candidates, Settings([params] * 3, VOCAB), np.full(3, 0.2), 1e-4)
    assert sure.tolist() == [True, False, True]


def test_a_nucleus_that_ends_where_the_looking_ends_is_not_sure() -> None:
    logits = np.full((3, VOCAB), -50, np.float32)
    for row, equals in enumerate((WIDTH - 1, WIDTH, NUM_CANDIDATES + 1)):
        logits[row, :equals] = 1
    params = SamplingParams(temperature=1.0, top_p=0.9)
    candidates = top_candidates(logits, np.ones(3, np.float32))
    _, sure = quick_draw(candidates, Settings([params] * 3, VOCAB), np.full(3, 0.5), 1e-4)
    assert sure.tolist() == [True, False, False]


def test_a_mass_that_may_be_wrong_at_the_edge_decides_what_is_the_same_either_way() -> None:
    logits = np.full((1, VOCAB), -50, np.float32)
    logits[0, :2] = [1, 0]
    share = 1 / (1 + np.exp(-1))
    candidates = top_candidates(logits, np.ones(1, np.float32))
    for uniform, near in ((0.999, False), (0.3, True)):  # the second token, the first
        for top_p, expected in ((share * 0.99, True), (share * (1 - 5e-5), near),
                                (share * (1 + 5e-5), near), (share * 1.01, True)):  # fmt: skip
            settings = Settings([SamplingParams(temperature=1.0, top_p=float(top_p))], VOCAB)
            _, sure = quick_draw(candidates, settings, np.full(1, uniform), 1e-4)
            assert sure.tolist() == [expected]


def test_of_three_nuclei_none_is_told_from_the_first_and_the_last() -> None:
    logits = np.full((1, VOCAB), -50, np.float32)
    logits[0, :3] = [0, -9.9, -9.92]  # what follows the first token weighs less than the error
    candidates = top_candidates(logits, np.ones(1, np.float32))
    for wanted, expected in ((0.99992, True), (0.99997, False)):  # two nuclei, three
        params = SamplingParams(temperature=1.0, top_p=wanted / float(candidates.mass[0]))
        found = quick_draw(candidates, Settings([params], VOCAB), np.full(1, 0.3), 1e-4)
        assert found[1].tolist() == [expected]
