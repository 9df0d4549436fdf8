"""Compiles grammars in a process of its own first, which is ended when one takes too much."""

import json
import math
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from nemo_trt.child import module_command
from nemo_trt.errors import MachineError, NemoTrtError, RequestError, StateError

from .cancellation import current

LIMITS = {"max_grammar_size": 10_000, "initial_lexer_fuel": 200_000, "step_max_items": 10_000}
"""llguidance's, lower than its own: its time grows as the square of an object's optional
properties, when it compiles and again with every token."""
CPU_S = 1
"""Processor time that a grammar may take, to the next full second of its process."""
MEMORY_BYTES = 2**29
_LIMITED = (signal.SIGXCPU, signal.SIGABRT, signal.SIGKILL)
"""Signals that end the process: at its limits, or when the machine has no memory left."""


class GrammarTooLargeError(RequestError):
    """A grammar takes more time or memory to compile than any request is given."""


class GrammarTrial:
    """Tells whether a grammar can be compiled, within bounded time and memory.

    No limit of llguidance bounds all of its work: a "multipleOf" of seven digits takes minutes.
    What compiles here, over a vocabulary of single bytes, takes about as long with the model's
    own. The process starts with the first grammar, and anew after one that it did not survive.

    Args:
        cpu_s: processor time of one grammar.
        memory_bytes: of the process.

    Attributes:
        spent_s: processor time of all grammars so far.
    """

    def __init__(self, *, cpu_s: int = CPU_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._cpu_s, self._memory_bytes = cpu_s, memory_bytes
        self.spent_s = 0.0
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False
        weakref.finalize(self, _ended, self.__dict__)

    def error_of(self, grammar: str) -> str | None:
        """What is wrong with a grammar, as llguidance writes it; None: it can be compiled.

        Raises:
            CancelledError: nobody waits for it any more; its process has been ended.
            GrammarTooLargeError: it takes too much.
            MachineError: the process does not run here.
            StateError: the trial has been closed.
        """
        with self._lock:
            self._require_open()
            current().require_wanted()
            if self._child is not None and self._child.poll() is not None:
                _ended(self.__dict__)  # the machine needed memory while nobody asked
            if self._child is None:
                limits = map(str, (self._cpu_s, self._memory_bytes))
                self._child = subprocess.Popen(
                    module_command(__name__, *limits),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            try:
                with current().stopping(self._child.kill):
                    answer = _asked(self._child, grammar)
            except CancelledError:
                _ended(self.__dict__)
                raise
            if answer is None:
                code = self._child.wait()
                _ended(self.__dict__)
                self.spent_s += self._cpu_s
                self._require_open()
                raise self._failure(code)
            error, seconds = answer
            self.spent_s += seconds
            return error

    def _failure(self, code: int) -> NemoTrtError:
        if -code not in _LIMITED:
            return MachineError(f"The process that compiles grammars ended with code {code}.")
        return GrammarTooLargeError(
            f"The grammar must take at most {self._cpu_s} s and "
            f"{self._memory_bytes // 2**20} MiB to compile. Make it smaller, or its numbers."
        )

    def _require_open(self) -> None:
        if self._closed:
            raise StateError("Cannot compile a grammar with a trial that has been closed.")

    def close(self) -> None:
        """End the process, in the middle of a grammar if need be."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()
        with self._lock:
            _ended(self.__dict__)


def _asked(child: "subprocess.Popen[str]", grammar: str) -> tuple[str | None, float] | None:
    """What the process says of a grammar: its error and seconds. None: the process has ended."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(grammar) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except OSError:
        return None
    if not line.endswith("\n"):
        return None
    error, seconds = json.loads(line)
    return error, seconds


def _ended(state: dict[str, Any]) -> None:
    child = state.get("_child")
    state["_child"] = None
    if child is not None:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):  # what the process no longer reads is flushed once more
                pipe.close()


def _main(cpu_s: int, memory_bytes: int) -> None:
    """Answer each line, a grammar in JSON, with a line: its error or null, and seconds."""
    import llguidance

    limits = llguidance.LLParserLimits(**LIMITS)
    tokenizer = llguidance.LLTokenizer("byte")
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    for line in sys.stdin:
        start = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(start) + cpu_s, hard))
        matcher = llguidance.LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits)
        error = matcher.get_error() if matcher.is_error() else None
        print(json.dumps([error, time.process_time() - start]), flush=True)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
