"""What leaves one process is what arrives in the other."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_trt import errors
from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import NemoTrtError, RequestError
from nemo_trt.serve.drafts import DraftSource
from nemo_trt.serve.grammar_trial import GrammarTooLargeError
from nemo_trt.serve.interface import EngineFacts
from nemo_trt.serve.options import ServeOptions
from nemo_trt.serve.processes import wire
from nemo_trt.serve.processes.requests import (
    GrammarSource,
    RemoteDrafts,
    RequestReader,
    packed_request,
)
from nemo_trt.serve.request import Ended, Output, Request, Usage
from nemo_trt.serve.scoring import PromptScores, TokenScore
from nemo_trt.serve.tools import ToolConstraint

pytestmark = pytest.mark.unit


def sent(value: Any) -> Any:
    """As msgpack carries it."""
    return msgpack.unpackb(msgpack.packb(value), strict_map_key=False)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TOKENS = st.integers(0, 2**31 - 1)
TOPS = st.lists(st.tuples(TOKENS, FLOATS), max_size=3).map(tuple)
EVENTS = st.builds(
    TokenEvent,
    row=st.just(0),
    token_id=TOKENS,
    text=st.text(max_size=5),
    logprob=st.none() | FLOATS,
    top_logprobs=st.just(()),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    stop=st.none(),
) | st.builds(
    TokenEvent,
    row=st.just(0),
    token_id=TOKENS,
    text=st.text(max_size=5),
    logprob=FLOATS,
    top_logprobs=TOPS,
    finish_reason=st.just("stop"),
    stop=st.text(max_size=3),
)
USAGES = st.builds(
    Usage,
    **{
        field.name: FLOATS if field.name == "queue_s" else st.integers(0, 2**40)
        for field in fields(Usage)
    },
)
ENDS = st.builds(Ended, reason=st.sampled_from(["stop", "cancelled"]), usage=USAGES)


@given(st.builds(Output, request_id=TOKENS, event=st.none() | EVENTS, ended=st.none() | ENDS))
def test_news_arrive_as_they_were(output: Output) -> None:
    row = sent(wire.packed_output(output.request_id, output))
    assert wire.output_from(row) == output


def test_every_error_keeps_its_class_and_text() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    for kind in kinds:
        if issubclass(kind, NemoTrtError):
            error = wire.error_from(sent(wire.packed_error(kind("why"))))
            assert type(error) is kind and str(error) == "why"
    assert type(wire.error_from(wire.packed_error(GrammarTooLargeError("x")))) is RequestError
    assert wire.error_from(wire.packed_error(None)) is None
    usage = Usage(prompt_tokens=3)
    ended = Ended(reason="error", usage=usage, error=errors.CapacityError("full"))
    row = sent(wire.packed_output(1, Output(request_id=9, event=None, ended=ended)))
    found = wire.output_from(row).ended
    assert found is not None and isinstance(found.error, errors.CapacityError)


OTHER: dict[str, Any] = {
    "max_tokens": 3,
    "min_tokens": 2,
    "temperature": 0.25,
    "top_k": 4,
    "top_p": 0.5,
    "min_p": 0.125,
    "repetition_penalty": 2.0,
    "presence_penalty": -1.0,
    "frequency_penalty": 0.5,
    "logit_bias": {5: 1.5, 70_000: -2.0},
    "seed": 2**64 - 1,
    "stop": ("é", "\n\n"),
    "stop_token_ids": (7, 8),
    "ignore_eos": True,
    "logprobs": 0,
}


def test_sampling_parameters_arrive_as_they_were() -> None:
    assert set(OTHER) == {field.name for field in fields(SamplingParams)}
    for params in (
        SamplingParams(),
        SamplingParams(**OTHER),
        *(SamplingParams(**{n: v}) for n, v in OTHER.items()),
    ):
        assert wire.params_from(sent(wire.packed_params(params))) == params


def test_options_arrive_without_the_key_of_verdicts() -> None:
    options = ServeOptions(
        model_name="m",
        api_keys=("a", "b"),
        max_body_bytes=1,
        max_queue=2,
        prefill_tokens=3,
        request_timeout_s=4.5,
        allow_unvalidated=True,
        verify_key=Path("key"),
        cors_origins=("https://a",),
        allowed_hosts=("a",),
        log_text=True,
    )
    assert all(getattr(options, field.name) != field.default for field in fields(options))
    found = wire.options_from(sent(wire.packed_options(options)))
    assert found == replace(options, verify_key=None)
    assert wire.options_from(sent(wire.packed_options(ServeOptions()))) == ServeOptions()


def test_facts_and_scores_arrive_as_they_were() -> None:
    facts = EngineFacts(
        max_seq_len=9, slots=2, compute_precision="fp8", description={"a": [1, None]}
    )
    assert wire.facts_from(sent(wire.packed_facts(facts))) == facts
    scores = [
        TokenScore(token_id=3, logprob=-0.5, rank=1, top=((3, -0.5), (4, -1.0))),
        TokenScore(token_id=4, logprob=-1.5, rank=9, top=()),
    ]
    assert wire.scores_from(sent(wire.packed_scores(scores))) == scores


class Grammar:
    """Knows how many states were begun."""

    def __init__(self) -> None:
        self.begun = 0

    def fresh(self) -> Any:
        self.begun += 1
        return f"state {self.begun}"


def read(request: Request, reader: RequestReader, grammars: Any = None) -> Request:
    packed = sent(packed_request(request, 1.5))
    assert packed["arrival"] == 1.5
    return reader.request("a front end", 1, packed, grammars)


def test_a_request_arrives_with_all_that_it_asks_for() -> None:
    told: list[Any] = []
    reader, group = RequestReader(told.append), object()
    asked = Request(
        prompt=[1, 131_071, 5],
        params=SamplingParams(**OTHER),
        deadline=12.5,
        drafts=RemoteDrafts([7, 8, 9, 7, 8, 9, 4]),
        scores=PromptScores(2),
        score_only=True,
        group=group,
    )
    found = read(asked, reader)
    assert (found.prompt, found.params, found.deadline) == ([1, 131_071, 5], asked.params, 12.5)
    assert found.score_only and found.speculate and found.constraint is None
    assert found.drafts is not None and found.scores is not None and found.scores.top == 2
    assert found.drafts.follows == DraftSource([7, 8, 9, 7, 8, 9, 4]).follows != {}
    again = read(asked, reader)
    assert again.group == found.group and again.drafts is found.drafts
    assert again.prompt is found.prompt
    assert read(replace(asked, group=object()), reader).group != found.group
    alone = read(Request(prompt=[1, 2, 1, 2, 1]), reader)
    assert alone.group is None and alone.scores is None
    assert alone.drafts is not None and alone.drafts.tokens == [1, 2, 1, 2, 1]
    assert read(Request(prompt=[1], speculate=False), reader).drafts is None


def test_scores_are_sent_on_as_they_come() -> None:
    import numpy as np

    told: list[Any] = []
    found = read(Request(prompt=[1, 2], scores=PromptScores(1)), RequestReader(told.append))
    assert found.scores is not None
    plain = PromptScores(1)
    for rows, following in ((2, [3, 0]), (1, [2])):
        logits = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        found.scores.push(logits, following)
        plain.push(logits, following)
    assert [message[:2] for message in told] == [["scores", 1]] * 2
    arrived = [score for message in told for score in wire.scores_from(sent(message[2]))]
    assert arrived == plain.scores


def test_each_answer_begins_its_grammar_anew() -> None:
    reader, grammar = RequestReader(lambda _: None), Grammar()
    asked = Request(prompt=[1], constraint=GrammarSource("start: x"))
    packed = packed_request(asked, 0.0)["constraint"]
    assert reader.sources(packed) == ["start: x"]
    states = [read(asked, reader, {"start: x": grammar}).constraint for _ in range(2)]
    assert states == ["state 1", "state 2"]


def test_calls_of_tools_arrive_with_both_their_grammars() -> None:
    reader, calls, text = RequestReader(lambda _: None), Grammar(), Grammar()
    tools = ToolConstraint(
        5, 32, choice="auto", calls=GrammarSource("calls"), text=GrammarSource("text")
    )
    packed = packed_request(Request(prompt=[1], constraint=tools), 0.0)["constraint"]
    assert reader.sources(packed) == ["calls", "text"]
    found = read(
        Request(prompt=[1], constraint=tools), reader, {"calls": calls, "text": text}
    ).constraint
    assert isinstance(found, ToolConstraint)
    assert (found.trigger, found.vocab_size, found.choice) == (5, 32, "auto")
    assert (found.calls, found.text, calls.begun, text.begun) == ("state 1", "state 1", 1, 1)
    required = ToolConstraint(5, 32, choice="required", calls=GrammarSource("calls"))
    alone = packed_request(Request(prompt=[1], constraint=required), 0.0)["constraint"]
    assert reader.sources(alone) == ["calls"]


def test_a_constraint_of_ones_own_cannot_leave_its_process() -> None:
    class Own:
        finished = False

        def allowed(self) -> None:
            return None

        def accept(self, token_id: int) -> None:
            pass

    with pytest.raises(RequestError, match="must be a grammar to leave its process, got Own"):
        packed_request(Request(prompt=[1], constraint=Own()), 0.0)
    for call in (GrammarSource("x").allowed, lambda: GrammarSource("x").finished):
        with pytest.raises(errors.StateError, match="the engine's process does"):
            call()
