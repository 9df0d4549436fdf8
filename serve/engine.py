"""The AsyncEngine: a thread runs the scheduler, coroutines iterate over answers."""

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Self

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.engines.ownership import Ownership
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.session import Session
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import NemoTrtError, StateError
from nemo_trt.where import CPU, Where

from .answer import Answer
from .interface import Engine, EngineFacts
from .listener import Asked, Listener, LoopListener
from .metrics import Metrics
from .opening import Opening
from .request import Ended, Output, Request, Usage
from .scheduler import Scheduler

_LOG = logging.getLogger("nemo_trt.serve")


class AsyncEngine(Engine):
    """Answers concurrent requests with one Runner, which nothing else may use.

        async with AsyncEngine.open(Path("bundle"), max_batch=8) as engine:
            async for event in engine.generate("The capital of France is"):
                print(event.text, end="")

    Use it in the process that opened it. In a child process forked later, `close` does nothing and
    every other call raises StateError.

    Args:
        runner: the Runner to use. It is closed by `close`, and if this constructor raises.
        prefill_tokens: most prompt tokens per step.
        max_queue: maximum number of requests waiting for a slot; further ones raise QueueFullError.
        metrics: counters to update; by default new ones.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        prefill_tokens: int = 512,
        max_queue: int = 256,
        metrics: Metrics | None = None,
    ) -> None:
        self._runner = runner
        self._ownership = Ownership("an engine")
        try:
            self.session: Session = runner.session
            self.tokenizer: Tokenizer = runner.tokenizer
            self.config: ModelConfig = runner.config
            self.metrics = metrics or Metrics()
            self._scheduler = Scheduler(
                self.session,
                self.tokenizer,
                prefill_tokens=prefill_tokens,
                max_queue=max_queue,
            )
            self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
            self._asked: dict[int, tuple[Asked, Listener, Request]] = {}
            self._open, self._draining, self._stopped = True, False, False
            self._failure: BaseException | None = None
            self.metrics.watch(self._scheduler, self.session)
            self._thread = threading.Thread(target=self._run, name="nemo-trt engine", daemon=True)
            self._thread.start()
        except BaseException:
            runner.close()
            raise

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path,
        where: Where | str = CPU,
        *,
        max_batch: int | None = None,
        max_seq_len: int | None = None,
        threads: int | None = None,
        prefill_tokens: int = 512,
        max_queue: int = 256,
        metrics: Metrics | None = None,
    ) -> Opening[Self]:
        """Open a bundle in a thread. The arguments are those of `Runner.open` and of this class.

        Returns:
            An object to await, or to enter with `async with`. Without an event loop, construct an
            `AsyncEngine` from a Runner.

        Raises:
            BundleError, BuildError, MachineError, RequestError: when awaited; see `Runner.open`.
        """
        return Opening(
            lambda: cls(
                Runner.open(
                    bundle, where, max_batch=max_batch, max_seq_len=max_seq_len, threads=threads
                ),
                prefill_tokens=prefill_tokens,
                max_queue=max_queue,
                metrics=metrics,
            )
        )

    @property
    def failure(self) -> BaseException | None:
        """The exception that stopped the engine's thread, or None."""
        if not self._ownership.is_here:
            return StateError("The engine was opened before this process was forked.")
        return self._failure

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        sizes = (len(self.tokenizer.token_bytes(at)) for at in range(self.tokenizer.vocab_size))
        return max(sizes)

    @cached_property
    def facts(self) -> EngineFacts:
        """What does not change while it is open."""
        session = self.session
        return EngineFacts(
            max_seq_len=session.max_seq_len,
            slots=session.max_batch,
            compute_precision=session.compute_precision,
            description=dict(session.describe()),
        )

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the others; return whether all ended in time."""
        self._ownership.require_here()
        self._draining = True
        end = time.monotonic() + timeout_s
        while self._asked and time.monotonic() < end and self._failure is None:
            await asyncio.sleep(0.01)
        return not self._asked

    def wait_stopped(self) -> None:
        """Block until the engine's thread has ended: after `close`, or with `failure` set."""
        self._ownership.require_here()
        self._thread.join()

    def close(self) -> None:
        """End all requests at once, stop the thread after the step that runs, free the session.

        Does nothing if called again, or in a forked process.
        """
        if self._ownership.is_here and self._open:
            self._open = False
            reason = self._refusal() or StateError("The engine has been closed.")
            for number, (asked, listener, request) in list(self._asked.items()):
                usage = Usage(prompt_tokens=len(request.prompt))
                ended = Ended(reason="error", usage=usage, error=reason)
                listener.tell([(asked, Output(request_id=number, event=None, ended=ended))])
            self._inbox.put(lambda: None)
            self._thread.join()
            self._runner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def submit(self, answer: Answer, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        """See `Answers`; callable from any thread."""
        self.enqueue(request, answer, LoopListener(loop))

    def enqueue(self, request: Request, asked: Asked, listener: Listener) -> None:
        """Queue a request; `listener` is told of it as `asked`. Callable from any thread."""

        def submit() -> None:
            error = self._refusal()
            if error is None:
                try:
                    number = self._scheduler.submit(request)
                    self._asked[number] = asked, listener, request
                except NemoTrtError as refused:
                    error = refused
            listener.settle(asked, error)

        if (refusal := self._refusal()) is not None:
            listener.settle(asked, refusal)
            return
        self._put(submit)

    def _put(self, command: Callable[[], None]) -> None:
        """Let the engine's thread run a command, or this one when that has ended."""
        self._inbox.put(command)
        if self._stopped:
            self._take_commands(block=False)

    def _refusal(self) -> NemoTrtError | None:
        if not self._ownership.is_here:
            return StateError(
                "The engine was opened before this process was forked, and answers in the process "
                "that opened it alone. Open one here."
            )
        if self._failure is not None:
            return StateError(f"The engine has failed: {self._failure!r}. Start it again.")
        if not self._open or self._draining:
            return StateError("The engine is shutting down and takes no more requests.")
        return None

    def cancel(self, answer: Asked) -> None:
        """End a request, by what it was asked as. Callable from any thread."""

        def cancel() -> None:  # runs behind the request's own submission
            for number, (found, *_) in self._asked.items():
                if found is answer:
                    output = self._scheduler.cancel(number)
                    self._deliver([output] if output else [])
                    return

        if self._ownership.is_here:
            self._put(cancel)

    def _run(self) -> None:
        try:
            while self._open:
                self._take_commands()
                if not self._scheduler.idle:
                    self._deliver(self._scheduler.step())
        except BaseException as error:  # whatever it is, nobody may wait for ever
            _LOG.critical("the engine has failed", exc_info=error)
            self._failure = error
        self._take_commands(block=False)  # came in the last step: they are refused
        reason = self._refusal() or StateError("The engine has stopped.")
        for number in list(self._asked):
            output = self._scheduler.cancel(number) if self._failure is None else None
            usage = output.ended.usage if output and output.ended else None
            ended = Ended(reason="error", usage=usage or Usage(prompt_tokens=0), error=reason)
            self._deliver([Output(request_id=number, event=None, ended=ended)])
        self._stopped = True
        self._take_commands(block=False)

    def _take_commands(self, block: bool = True) -> None:
        if block and self._open and self._scheduler.idle:
            self._inbox.get()()
        with suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()

    def _deliver(self, outputs: list[Output]) -> None:
        """Hand news to those who asked, one call for all of each."""
        now = time.perf_counter()
        by_listener: dict[Listener, list[tuple[Asked, Output]]] = defaultdict(list)
        for output in outputs:
            asked, listener, _ = self._asked[output.request_id]
            if output.ended:
                del self._asked[output.request_id]
            self.metrics.count(output, asked, now)
            by_listener[listener].append((asked, output))
        for listener, news in by_listener.items():
            listener.tell(news)
