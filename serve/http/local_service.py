"""A server's engine in its own process: opened in the background, ready, draining, closed."""

import threading
import time
from collections.abc import Callable

from nemo_trt.bundle import Bundle
from nemo_trt.engines.end_tokens import end_tokens
from nemo_trt.engines.ownership import Ownership
from nemo_trt.engines.runner import Runner
from nemo_trt.errors import MachineError, NemoTrtError, StateError
from nemo_trt.serve.approval import open_judged
from nemo_trt.serve.engine import AsyncEngine
from nemo_trt.serve.grammar_trial import GrammarTrial
from nemo_trt.serve.grammars import Grammars
from nemo_trt.serve.metrics import Metrics
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import Verdict

from .service import Service, State

Opener = Callable[[], Runner]


class LocalService(Service):
    """A service whose engine runs in a thread of this process.

    Args:
        bundle: whose verdict counts.
        verdict: of `require_verdict`.
        opener: called in a thread of its own, at once.

    Attributes:
        engine: None before it is ready.
        metrics: there from the beginning.
    """

    def __init__(
        self, bundle: Bundle, verdict: Verdict, opener: Opener, options: ServeOptions
    ) -> None:
        super().__init__(bundle, options)
        self.metrics: Metrics = Metrics()
        self.engine: AsyncEngine | None = None
        self._judged = verdict
        self._opening_failure: str | None = None
        self._grammars: Grammars | None = None
        self._trial = GrammarTrial()
        self._making = threading.Lock()
        self._draining = False
        self._opener = opener
        self._ownership = Ownership("a server")
        self._thread = threading.Thread(target=self._open, name="nemo-trt open", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """Where the server's life stands."""
        if self.failure:
            return "failed"
        if self._draining:
            return "draining"
        return "ready" if self.engine else "starting"

    @property
    def failure(self) -> str | None:
        """What kept the engine from opening, or stopped it since; a fork does."""
        if not self._ownership.is_here:
            return "The server was opened before this process was forked. Open it here."
        if self.engine is not None and self.engine.failure is not None:
            return _in_words(self.engine.failure)
        return self._opening_failure

    @property
    def validated(self) -> bool:
        """Whether the verdict is a pass of what is served."""
        return self._judged.passed

    @property
    def verdict(self) -> str:
        """What the validator said of it: "pass", "fail", or why there is no verdict."""
        return self._judged.words

    async def metrics_text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return self.metrics.text()

    def wait(self) -> None:
        """Block until the engine is ready.

        Raises:
            MachineError: it did not open.
        """
        self._thread.join()
        if self.failure:
            raise MachineError(self.failure)

    def wait_stopped(self) -> None:
        """Block until the engine has stopped: closed, or with `failure` set."""
        if self.engine:
            self.engine.wait_stopped()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait until all is answered; False if that takes too long."""
        self._draining = True
        if self.engine is None or not self._ownership.is_here:
            return True
        return await self.engine.drain(timeout_s)

    def close(self) -> None:
        """End what runs and free the engine; a second call does nothing."""
        self._draining = True
        self._thread.join()
        if self.engine:
            self.engine.close()
        self._close_workers()
        self._trial.close()

    def grammars(self) -> Grammars:
        """Grammars over the model's vocabulary, which is read when the first is asked for: that
        takes seconds, so call it in a worker."""
        with self._making:
            if self._grammars is None:
                engine = self.require()
                ends = end_tokens(engine.config, engine.tokenizer)
                self._grammars = Grammars(
                    engine.tokenizer, engine.config.vocab_size, ends, self._trial
                )
            return self._grammars

    def _open(self) -> None:
        start = time.perf_counter()
        try:
            runner, self._judged = open_judged(
                self.bundle, self._judged, self.options, self._opener
            )
            if runner.session.bundle.bundle_id != self.bundle.bundle_id:
                raise StateError("The bundle was altered while the server started.")
            engine = AsyncEngine(
                runner,
                prefill_tokens=self.options.prefill_tokens,
                max_queue=self.options.max_queue,
                metrics=self.metrics,
            )
            _ = engine.longest_token  # which is looked for once
            self.engine = engine
        except NemoTrtError as error:
            self._opening_failure = str(error)
        except Exception as error:  # a thread's exception would be lost, and all would wait
            self._opening_failure = _in_words(error)
        self.startup_s = round(time.perf_counter() - start, 3)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
