"""The Runner: rows of different lengths, rewinding, generation, and what it refuses."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import BundleError, CapacityError, RequestError, StateError

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(5).integers(0, 512, 40).tolist()


@pytest.fixture
def runner(tiny: Any) -> Iterator[Runner]:
    with Runner.open(tiny.bundle, max_batch=3, max_seq_len=64, threads=1) as runner:
        yield runner


def alone(runner: Runner, tokens: list[int]) -> np.ndarray:
    runner.rewind(0)
    logits = runner.prefill({0: tokens})[0]
    runner.rewind(0)
    return logits


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [None, 1, 7, 16])
def test_a_ragged_batch_equals_each_row_alone(runner: Runner, chunk: int | None) -> None:
    prompts = [TOKENS[:5], TOKENS[5:25], TOKENS[25:33]]
    expected = [alone(runner, prompt) for prompt in prompts]
    close(runner.prefill(dict(enumerate(prompts)), chunk=chunk), np.array(expected))
    assert [len(runner.tokens(row)) for row in range(3)] == [5, 20, 8]


def test_rows_at_different_lengths_decode_together(runner: Runner) -> None:
    runner.prefill({0: TOKENS[:5], 2: TOKENS[5:25]})
    found = runner.decode({2: 7, 0: 9})
    assert runner.tokens(1) == ()
    close(found[0], alone_of(runner, [*TOKENS[5:25], 7]))
    close(found[1], alone_of(runner, [*TOKENS[:5], 9]))


def alone_of(runner: Runner, tokens: list[int]) -> np.ndarray:
    """Logits of tokens in the row that rests."""
    logits = runner.prefill({1: tokens})[0]
    runner.rewind(1)
    return logits


def test_rewinding_forgets_what_came_after(runner: Runner) -> None:
    expected = alone(runner, [*TOKENS[:10], 3, 4])
    runner.prefill({0: TOKENS})
    runner.rewind(0, 10)
    close(runner.prefill({0: [3, 4]})[0], expected)


def test_a_row_without_room_for_padding_runs_alone(runner: Runner) -> None:
    runner.prefill({0: TOKENS})
    runner.prefill({0: TOKENS[:22]})  # 62 of 64: no room for 20 tokens of padding
    expected = alone_of(runner, TOKENS[:20])
    found = runner.prefill({0: [5], 1: TOKENS[:20]})
    close(found[1], expected)
    assert len(runner.tokens(0)) == 63


def test_overflow_is_refused_before_anything_is_written(runner: Runner) -> None:
    runner.prefill({0: TOKENS})
    before = runner.session.read_cache(0, "key", 0, 0, 64)
    with pytest.raises(CapacityError, match="64"):
        runner.prefill({1: [1], 0: TOKENS})
    assert (len(runner.tokens(0)), runner.tokens(1)) == (40, ())
    np.testing.assert_array_equal(runner.session.read_cache(0, "key", 0, 0, 64), before)
    with pytest.raises(CapacityError, match="shorter than"):
        runner.generate([*TOKENS, *TOKENS])


@pytest.mark.parametrize(
    ("rows", "words"), [({}, "row"), ({3: [1]}, "0 to 2"), ({0: []}, "token"), ({0: [512]}, "511")]
)
def test_what_does_not_exist_is_refused(runner: Runner, rows: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        runner.prefill(rows)


def test_generation_is_the_greedy_continuation_step_by_step(runner: Runner) -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    events = list(runner.generate(TOKENS[:8], params))
    runner.rewind(0)
    logits, expected = runner.prefill({0: TOKENS[:8]}), []
    for _ in range(6):
        expected.append(int(logits[0].argmax()))
        logits = runner.decode({0: expected[-1]})
    assert [event.token_id for event in events] == expected
    assert [event.finish_reason for event in events] == [None] * 5 + ["length"]


def test_a_batch_generates_what_each_prompt_generates_alone(runner: Runner) -> None:
    prompts = [TOKENS[:3], TOKENS[3:20], TOKENS[20:26]]
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (4, 9, 2)]
    together: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for event in runner.generate(prompts, params):
        together[event.row].append(event.token_id)
    for row, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        assert together[row] == [event.token_id for event in runner.generate(prompt, one)]


def test_generation_ends_when_the_row_is_full(runner: Runner) -> None:
    params = SamplingParams(max_tokens=1000, ignore_eos=True)
    events = list(runner.generate(TOKENS, params))
    assert len(events) == 64 - 40 and events[-1].finish_reason == "length"


def test_a_stop_token_ends_the_answer(runner: Runner) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    third = [event.token_id for event in runner.generate(TOKENS[:8], params)][2]
    stopping = SamplingParams(max_tokens=8, ignore_eos=True, stop_token_ids=(third,))
    events = list(runner.generate(TOKENS[:8], stopping))
    assert events[-1].token_id == third and events[-1].finish_reason == "stop"
    assert len(events) <= 3


def test_what_a_row_holds_of_a_prompt_is_not_computed_again(runner: Runner) -> None:
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    expected = [e.token_id for e in runner.generate([*TOKENS[:30], 1, 2], params)]
    runner.rewind(0)
    list(runner.generate(TOKENS[:32], params))
    steps = []
    original = runner.session._step
    runner.session._step = lambda ids, *rest: steps.append(ids.shape[1]) or original(ids, *rest)  # type: ignore[method-assign, func-returns-value]
    assert [e.token_id for e in runner.generate([*TOKENS[:30], 1, 2], params)] == expected
    assert steps[0] == 2


def test_text_needs_a_tokenizer_and_says_so(runner: Runner) -> None:
    with pytest.raises(RequestError, match="no tokenizer"):
        runner.generate("hello")


def test_a_closed_runner_says_so(tiny: Any) -> None:
    runner = Runner.open(tiny.bundle, threads=1)
    runner.close()
    runner.close()
    with pytest.raises(StateError, match="closed"):
        runner.prefill({0: [1]})


def test_a_folder_that_is_no_bundle_is_refused(tiny: Any) -> None:
    with pytest.raises(BundleError, match="nemo-trt export"):
        Runner.open(tiny.checkpoint)


def test_the_real_model_knows_the_capital_of_france(sample_bundle: Any) -> None:
    with Runner.open(sample_bundle.bundle) as runner:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        events = list(runner.chat(question, SamplingParams(max_tokens=40)))
        assert "Paris" in "".join(event.text for event in events)
        assert events[-1].finish_reason == "stop"
        stopped = list(runner.chat(question, SamplingParams(max_tokens=40, stop=("Paris",))))
        assert "".join(event.text for event in stopped) == "The capital of France is "


def test_two_runners_in_two_threads_do_not_meet(tiny: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    params = SamplingParams(max_tokens=10, ignore_eos=True)

    def run(prompt: list[int]) -> list[int]:
        with Runner.open(tiny.bundle, max_seq_len=64, threads=1) as runner:
            return [event.token_id for event in runner.generate(prompt, params)]

    prompts = [TOKENS[:9], TOKENS[9:30]]
    expected = [run(prompt) for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, prompts)) == expected
