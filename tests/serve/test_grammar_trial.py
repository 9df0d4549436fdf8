"""A grammar that would take minutes is refused in seconds, and holds up nobody for longer."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from typing import Any

import llguidance
import pytest

from nemo_trt.errors import MachineError, RequestError, StateError
from nemo_trt.serve import grammar_trial
from nemo_trt.serve.cancellation import Cancellation
from nemo_trt.serve.grammar_trial import GrammarTooLargeError, GrammarTrial
from nemo_trt.serve.grammars import GrammarConstraint, VocabularyGrammars
from nemo_trt.serve.http.errors import ApiError
from nemo_trt.serve.http.message_schema import Tool
from nemo_trt.serve.http.tool_grammar import calls_grammar
from tests.waiting import until

pytestmark = pytest.mark.e2e

MINUTES = {"type": "integer", "multipleOf": 9_999_991}
NEVER_S = 3600
"""Processor time that no test takes."""


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


def test_a_grammar_that_takes_much_memory_is_refused_and_the_next_one_served() -> None:
    with closing(GrammarTrial(cpu_s=NEVER_S, memory_bytes=2**26)) as trial:
        assert trial.error_of(grammar({"type": "integer"})) is None
        first = trial._child
        with pytest.raises(GrammarTooLargeError, match=f"at most {NEVER_S} s and 64 MiB"):
            trial.error_of(grammar(MINUTES))
        assert first is not None and first.returncode == -signal.SIGABRT
        assert trial.error_of(grammar({"type": "string"})) is None


class Ended(subprocess.Popen[str]):
    """A process that is over before it can be asked."""

    def __init__(self, *command: Any, **options: Any) -> None:
        super().__init__(*command, **options)
        self.wait()


@pytest.mark.parametrize("process", [subprocess.Popen, Ended])
def test_a_process_that_does_not_run_here_is_no_fault_of_the_grammar(
    process: type[subprocess.Popen[str]], trial: GrammarTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    monkeypatch.setattr("subprocess.Popen", process)
    with pytest.raises(MachineError, match="ended with code 1"):
        trial.error_of(grammar({"type": "integer"}))


def test_a_grammar_that_nobody_waits_for_ends_and_what_its_request_has_left_does_not_begin() -> (
    None
):
    cancellation, ended = Cancellation(), []

    def two_grammars(trial: GrammarTrial) -> None:
        for _ in range(2):
            try:
                trial.error_of(grammar(MINUTES))
            except CancelledError as error:
                ended.append(error)

    with closing(GrammarTrial(cpu_s=NEVER_S)) as trial:
        compiling = threading.Thread(target=cancellation.run, args=(two_grammars, trial))
        compiling.start()
        until(lambda: cancellation._stop is not None)
        child = trial._child
        cancellation.cancel()
        compiling.join()
        assert len(ended) == 2
        assert child is not None and child.returncode == -signal.SIGKILL


def test_leaving_after_a_grammar_was_compiled_ends_no_process(trial: GrammarTrial) -> None:
    cancellation = Cancellation()
    assert cancellation.run(trial.error_of, grammar({"type": "integer"})) is None
    first = trial._child
    cancellation.cancel()  # the process may be compiling another request's
    assert trial.error_of(grammar({"type": "string"})) is None
    assert trial._child is first


def test_a_process_that_was_killed_between_two_grammars_starts_anew(trial: GrammarTrial) -> None:
    assert trial.error_of(grammar({"type": "integer"})) is None
    first = trial._child
    assert first is not None
    first.kill()
    first.wait()
    assert trial.error_of(grammar({"type": "string"})) is None


def test_a_wrong_grammar_is_an_error_and_no_end(trial: GrammarTrial) -> None:
    error = trial.error_of(str(llguidance.LLMatcher.grammar_from_lark("start: missing")))
    assert error is not None and "missing" in error
    first = trial._child
    assert trial.error_of(grammar({"type": "integer"})) is None
    assert trial._child is first


def test_closing_ends_a_grammar_that_is_being_compiled() -> None:
    trial = GrammarTrial(cpu_s=NEVER_S)
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
    class Slow(VocabularyGrammars):
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
