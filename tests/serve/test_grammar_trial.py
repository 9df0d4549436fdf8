"""A grammar that would take minutes is refused in seconds, and holds up nobody for longer."""

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest

from nemo_trt.errors import RequestError, StateError
from nemo_trt.serve import grammar_trial
from nemo_trt.serve.grammar_trial import GrammarTooLargeError, GrammarTrial
from nemo_trt.serve.grammars import GrammarConstraint, Grammars
from nemo_trt.serve.http.errors import ApiError
from nemo_trt.serve.http.message_schema import Tool
from nemo_trt.serve.http.tool_grammar import calls_grammar
from tests.waiting import until

pytestmark = pytest.mark.e2e

MINUTES = {"type": "integer", "multipleOf": 9_999_991}


def grammar(schema: object) -> str:
    return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema)))


@pytest.fixture
def trial() -> Iterator[GrammarTrial]:
    trial = GrammarTrial()
    yield trial
    trial.close()


def test_an_endless_grammar_is_refused_and_the_next_one_served(trial: GrammarTrial) -> None:
    assert trial.error_of(grammar({"type": "integer"})) is None
    first = trial._child
    with pytest.raises(GrammarTooLargeError, match="at most 1 s and 512 MiB to compile"):
        trial.error_of(grammar(MINUTES))
    assert trial.spent_s >= grammar_trial.CPU_S
    assert first is not None and first.returncode == -signal.SIGXCPU
    assert trial.error_of(grammar({"type": "string"})) is None


def test_a_wrong_grammar_is_an_error_and_no_end(trial: GrammarTrial) -> None:
    error = trial.error_of(str(llguidance.LLMatcher.grammar_from_lark("start: missing")))
    assert error is not None and "missing" in error
    first = trial._child
    assert trial.error_of(grammar({"type": "integer"})) is None
    assert trial._child is first


def test_closing_ends_a_grammar_that_is_being_compiled(trial: GrammarTrial) -> None:
    errors: list[Exception] = []

    def compile_it() -> None:
        try:
            trial.error_of(grammar(MINUTES))
        except StateError as error:
            errors.append(error)

    compiling = threading.Thread(target=compile_it)
    compiling.start()
    until(lambda: trial._child is not None)
    child = trial._child
    trial.close()
    compiling.join()
    assert child is not None and child.returncode == -signal.SIGKILL
    assert len(errors) == 1
    with pytest.raises(StateError):
        trial.error_of(grammar(MINUTES))


def test_tools_that_each_take_long_are_refused_together() -> None:
    class Slow(Grammars):
        """Every schema is wrong, and takes half a second to say so."""

        def __init__(self) -> None:
            self.seen = 0

        @property
        def spent_s(self) -> float:
            return self.seen / 2

        def json_schema(self, schema: Any, *, lenient: bool = False) -> GrammarConstraint:
            self.seen += 1
            raise RequestError("cannot be enforced")

    tools = [
        Tool.model_validate({"type": "function", "function": {"name": f"f{at}"}})
        for at in range(128)
    ]
    slow = Slow()
    with pytest.raises(ApiError, match="those of the tools take too long"):
        calls_grammar(tools, None, slow, several=True)
    assert slow.seen < 10
