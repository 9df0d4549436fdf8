"""The tail that lowerings add finds the candidates of any logits, and samples as plainly."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from nemo_trt import contract
from nemo_trt.engines.candidates import COLDEST, Candidates, top_candidates
from nemo_trt.engines.sampling import Sampler, SamplingParams
from nemo_trt.passes.add_candidates import OUTPUTS, TEMPERATURES

from .plain_sampling import plain_token
from .tail import with_candidates
from .test_candidates import (
    GRID,
    SHAPES,
    VOCAB,
    as_ordered_by_a_device,
    logits_of,
    sample_candidates,
    sampler_of,
)

pytestmark = pytest.mark.unit


def graph_of(vocab_size: int) -> onnx.ModelProto:
    """Logits that are given, with candidates."""
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT, ("B", "N", vocab_size))
    logits = helper.make_tensor_value_info(
        contract.LOGITS, TensorProto.FLOAT, ("B", "N", vocab_size)
    )
    node = helper.make_node("Identity", ["given"], [contract.LOGITS])
    graph = helper.make_graph([node], "head", [given], [logits])
    opset = [helper.make_opsetid("", contract.OPSET)]
    return with_candidates(helper.make_model(graph, opset_imports=opset, ir_version=10))


@pytest.fixture(scope="module")
def tail() -> Any:
    model = graph_of(VOCAB)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString())


def found_by(tail: Any, logits: np.ndarray, temperatures: np.ndarray) -> Candidates:
    """As a device gives them that orders equals as it likes."""
    degrees = np.maximum(temperatures, np.float32(COLDEST))
    ids, values, mass, tempered = tail.run(
        list(OUTPUTS), {"given": logits[:, None], TEMPERATURES: degrees}
    )
    found = Candidates(
        ids=ids[:, 0],
        logits=values[:, 0],
        mass=mass[:, 0],
        mass_tempered=tempered[:, 0],
        vocab_size=logits.shape[1],
    )
    return as_ordered_by_a_device(found)


def of(ids: np.ndarray, logits: np.ndarray) -> Candidates:
    """Candidates whose sums are not looked at."""
    nothing = np.zeros(len(ids), np.float32)
    return Candidates(
        ids=ids, logits=logits, mass=nothing, mass_tempered=nothing, vocab_size=131_072
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_the_graph_finds_what_numpy_finds(tail: Any, shape: str, temperature: float) -> None:
    logits = np.array([logits_of(shape, seed) for seed in range(3)])
    degrees = np.full(3, temperature, np.float32)
    found, expected = found_by(tail, logits, degrees).in_order(), top_candidates(logits, degrees)
    assert np.array_equal(found.logits, expected.logits)
    assert np.array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.mass, expected.mass, rtol=1e-5)
    np.testing.assert_allclose(found.mass_tempered, expected.mass_tempered, rtol=1e-5)


def test_few_tokens_are_all_candidates() -> None:
    tail = ort.InferenceSession(graph_of(9).SerializeToString())
    found = found_by(tail, np.zeros((2, 9), np.float32), np.ones(2, np.float32))
    assert found.complete and found.in_order().ids.tolist() == [list(range(9))] * 2


@pytest.mark.parametrize("shape", ["flat", "ties", "a cliff at K", "normal"])
@pytest.mark.parametrize("params", GRID[:5], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_token_that_the_graphs_candidates_decide_is_the_plain_one(
    tail: Any, shape: str, params: SamplingParams, masked: bool
) -> None:
    logits = logits_of(shape, 5)
    prompt, answer = list(range(670, 690)), [693, 694, 695]
    mask = np.arange(VOCAB) % 3 != 0 if masked else None
    candidates = found_by(tail, logits[None], np.array([params.temperature], np.float32))
    for uniform in (0.05, 0.4, 0.97):
        expected = plain_token(logits, params, prompt, answer, mask, uniform)
        sampler = sampler_of(params, prompt, answer)
        (found,) = sample_candidates(candidates, [sampler], [mask], [uniform])
        assert found is None or expected in (None, found.token_id)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_the_sums(tail: Any, bad: float) -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    logits[0, 500], logits[1] = bad, -np.inf
    found = found_by(tail, logits, np.zeros(2, np.float32))
    samplers = [Sampler(SamplingParams(), VOCAB) for _ in logits]
    assert sample_candidates(found, samplers, [None] * 2, [0.0] * 2) == [None, None]


def test_equals_stand_in_the_order_of_ids() -> None:
    random = np.random.default_rng(1)
    logits = np.round(random.normal(0, 2, (20, 50))).astype(np.float32)
    logits[:, :3] = -np.inf
    logits[logits == 0] = random.choice([0.0, -0.0], (logits == 0).sum())
    ids = np.array([random.permutation(131_072)[:50] for _ in logits], np.int32)
    found = of(ids, logits).in_order()
    for row in range(20):
        order = np.lexsort((ids[row], -logits[row]))
        assert np.array_equal(found.ids[row], ids[row][order])
        assert np.array_equal(found.logits[row], logits[row][order])


def test_of_equals_the_lower_token_is_reported_first() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[9, 400, 600]] = 40.0
    exact = top_candidates(logits[None], np.zeros(1, np.float32))
    exact.ids[0, :3] = [600, 9, 400]
    (found,) = sample_candidates(exact, [Sampler(SamplingParams(logprobs=2), VOCAB)], [None], [0.5])
    assert found and found.token_id == 9
    assert [token for token, _ in found.top_logprobs] == [9, 400]
    assert found.logprob == found.top_logprobs[0][1]


def test_of_equals_at_the_edge_no_device_decides_which_are_drawn() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[5, 300]] = 3.0
    params = SamplingParams(temperature=1.0)
    exact = top_candidates(logits[None], np.ones(1, np.float32))
    ids = np.concatenate([[5, 300], np.arange(VOCAB - exact.ids.shape[1] + 2, VOCAB)])
    other = Candidates(
        ids=ids[None],
        logits=exact.logits,
        mass=exact.mass,
        mass_tempered=exact.mass_tempered,
        vocab_size=VOCAB,
    )
    for uniform in np.linspace(0, 0.999, 40).tolist():
        (found,) = sample_candidates(other, [Sampler(params, VOCAB)], [None], [uniform])
        assert found is None or found.token_id == plain_token(logits, params, [], [], None, uniform)
    (found,) = sample_candidates(other, [Sampler(params, VOCAB)], [None], [0.03])
    assert found and found.token_id == 300
