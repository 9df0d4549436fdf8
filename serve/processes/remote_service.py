"""The service of a front end: HTTP here, the engine in another process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from nemo_trt.bundle import Bundle
from nemo_trt.engines.tokenizers import Tokenizer, open_tokenizer
from nemo_trt.errors import MachineError, StateError
from nemo_trt.serve.cancellation import current
from nemo_trt.serve.grammar_trial import GrammarTrial
from nemo_trt.serve.grammars import Grammar, Grammars
from nemo_trt.serve.http.service import ErrorCount, Service
from nemo_trt.serve.interface import State
from nemo_trt.serve.log import LOG

from . import wire
from .channel import Channel
from .remote_engine import RemoteEngine
from .requests import GrammarSource

_GONE = "The engine's process has ended. The server must be started again."


class RemoteService(Service):
    """Talks to the engine's process from the event loop of the application.

    Args:
        channel: to the engine's process; started by `begin`, closed by `close`.
        settings: what the engine's process said first.

    Raises:
        BundleError: the bundle is missing or damaged.
        StateError: the bundle was altered.
    """

    def __init__(self, channel: Channel, settings: wire.Settings) -> None:
        super().__init__(Bundle.open(settings["bundle"]), wire.options_from(settings["options"]))
        if self.bundle.bundle_id != settings["bundle_id"]:
            raise StateError("The bundle was altered while the server started.")
        self.created = settings["created"]
        self._channel = channel
        self._told: dict[str, Any] = {}
        self._engine: RemoteEngine | None = None
        self._tokenizer: Tokenizer | None = None
        self._counted = _Errors(channel.send)
        self._asks = _Asks(channel.send)
        self._grammars = _RemoteGrammars(GrammarTrial(), self._asks)
        self._lost = False
        self._informed = asyncio.Event()  # where the engine's life stands
        self._settled = threading.Event()  # ready, or never to be so
        self._stopped = threading.Event()
        self._opening: asyncio.Task[None] | None = None

    @property
    def engine(self) -> RemoteEngine | None:
        """None before it is ready."""
        return self._engine

    @property
    def metrics(self) -> ErrorCount:
        """Counted in the engine's process."""
        return self._counted

    @property
    def startup_s(self) -> float | None:
        """Seconds that opening the engine took; None before."""
        seconds: float | None = self._told.get("startup_s")
        return seconds

    @property
    def state(self) -> State:
        """Where the engine's life stands; "starting" until its tokenizer is here, too."""
        if self._lost:
            return "failed"
        state: State = self._told.get("state", "starting")
        return "starting" if state == "ready" and self._engine is None else state

    @property
    def failure(self) -> str | None:
        """What kept the engine from opening, or stopped it since."""
        failure: str | None = _GONE if self._lost else self._told.get("failure")
        return failure

    @property
    def validated(self) -> bool:
        """Whether the verdict is a pass of what is served."""
        return bool(self._told.get("validated"))

    @property
    def verdict(self) -> str:
        """What the validator said of it; nothing before the engine's process has told."""
        return str(self._told.get("verdict", ""))

    async def metrics_text(self) -> bytes:
        """All metrics of all processes, in Prometheus's text format.

        Raises:
            StateError: the engine's process has gone.
        """
        text: bytes = await asyncio.wrap_future(self._asks.ask("metrics", None))
        return text

    def grammars(self) -> Grammars:
        """Grammars, tried here and compiled by the engine's process."""
        return self._grammars

    async def begin(self) -> None:
        """Listen to the engine's process, and open the tokenizer in a thread.

        Where the engine is ready already, others take requests: this one shall refuse none.
        """
        self._channel.start(self._heard, self._gone)
        self._opening = asyncio.create_task(self._open())
        await self._informed.wait()
        if self._told.get("state") == "ready":
            await asyncio.wait({self._opening})

    def wait(self) -> None:
        """Block until the engine is ready.

        Raises:
            MachineError: it did not open.
        """
        self._settled.wait()
        if self.failure:
            raise MachineError(self.failure)

    def wait_stopped(self) -> None:
        """Block until this front end is to end: asked to, or left alone."""
        self._stopped.wait()

    async def drain(self, timeout_s: float) -> bool:
        """The engine's process does."""
        return True

    def close(self) -> None:
        """Part from the engine's process; a second call does nothing."""
        if self._opening is not None:
            self._opening.cancel()
        self._channel.close()
        self._asks.fail(_GONE)
        self._close_workers()
        self._grammars.close()
        self._settled.set()
        self._stopped.set()

    async def _open(self) -> None:
        folder = self.bundle.tokenizer_folder
        if folder is not None:  # else the engine does not open either
            try:
                self._tokenizer = await asyncio.to_thread(open_tokenizer, folder)
            except Exception:
                LOG.exception("A front end does not open the tokenizer.")
                self._gone()
                return
        self._join()

    def _join(self) -> None:
        """Both are there, tokenizer and engine."""
        facts = self._told.get("facts")
        if self._engine is None and facts is not None and self._tokenizer is not None:
            self._engine = RemoteEngine(
                self._tokenizer,
                self.bundle.config,
                facts=wire.facts_from(facts),
                longest_token=self._told["longest_token"],
                send=self._channel.send,
            )
            self._channel.send(["ready"])
        if self._engine is not None or self.failure:
            self._settled.set()

    def _heard(self, message: Any) -> None:
        match message:
            case ["news", rows] if self._engine:
                self._engine.tell(rows)
            case ["settled", key, error] if self._engine:
                self._engine.settle(key, error)
            case ["scores", key, scores] if self._engine:
                self._engine.score(key, scores)
            case ["state", told]:
                self._told = told
                self._informed.set()
                self._join()
            case ["reply", number, value, error]:
                self._asks.answer(number, value, error)
            case ["stop"]:
                self._stopped.set()
            case _:
                raise ValueError(f"unknown message {message!r}")

    def _gone(self) -> None:
        self._lost = True
        if self._engine is not None:
            self._engine.fail(_GONE)
        self._asks.fail(_GONE)
        self._informed.set()
        self._settled.set()
        self._stopped.set()

    @property
    def lost(self) -> bool:
        """Whether the engine's process has gone without a word, or cannot be asked anything."""
        return self._lost


class _Errors:
    """Has errors counted where the metrics are."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send

    def count_error(self, status: int) -> None:
        """See `ErrorCount`."""
        self._send(["error", status])


class _Asks:
    """Questions to the engine's process, asked in any thread, answered in the channel's loop."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._next = 0
        self._failure: StateError | None = None

    def ask(self, what: str, argument: Any) -> "Future[Any]":
        """The answer, or its error."""
        future: Future[Any] = Future()
        with self._lock:
            number = self._next
            self._next += 1
            if self._failure is not None:
                future.set_exception(self._failure)
                return future
            self._waiting[number] = future
        self._send(["ask", number, what, argument])
        return future

    def answer(self, number: int, value: Any, error: Any) -> None:
        """The engine's process answered."""
        with self._lock:
            future = self._waiting.pop(number)
        if not future.set_running_or_notify_cancel():
            return
        if failed := wire.error_from(error):
            future.set_exception(failed)
        else:
            future.set_result(value)

    def fail(self, words: str) -> None:
        """There will be no answers any more."""
        with self._lock:
            self._failure = StateError(words)
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(self._failure)


class _RemoteGrammars(Grammars):
    """Tries grammars in a process of this front end, then has the engine's process compile them."""

    def __init__(self, trial: GrammarTrial, asks: _Asks) -> None:
        super().__init__(trial)
        self._asks, self._of_here = asks, trial

    def compiled(self, grammar: str) -> Grammar:
        """See `Grammars`."""
        answer = self._asks.ask("compile", grammar)
        with current().stopping(answer.cancel):
            answer.result()
        return GrammarSource(grammar)

    def close(self) -> None:
        """End the process of the trial."""
        self._of_here.close()
