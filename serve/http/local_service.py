"""A server whose engine is in its own process."""

import threading

from nemo_trt.engines.end_tokens import end_tokens
from nemo_trt.serve.engine import AsyncEngine
from nemo_trt.serve.grammar_trial import GrammarTrial
from nemo_trt.serve.grammars import Grammars, VocabularyGrammars
from nemo_trt.serve.interface import State
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.metrics import Metrics

from .service import Service


class LocalService(Service):
    """A service whose engine runs in a thread of this process, which it closes."""

    def __init__(self, lifetime: Lifetime) -> None:
        super().__init__(lifetime.bundle, lifetime.options)
        self.lifetime = lifetime
        self._grammars: Grammars | None = None
        self._trial = GrammarTrial()
        self._making = threading.Lock()

    @property
    def engine(self) -> AsyncEngine | None:
        """None before it is ready."""
        return self.lifetime.engine

    @property
    def metrics(self) -> Metrics:
        """There from the beginning."""
        return self.lifetime.metrics

    @property
    def startup_s(self) -> float | None:
        """Seconds that opening took; None before."""
        return self.lifetime.startup_s

    @property
    def state(self) -> State:
        """Where the server's life stands."""
        return self.lifetime.state

    @property
    def failure(self) -> str | None:
        """What kept the engine from opening, or stopped it since; a fork does."""
        return self.lifetime.failure

    @property
    def validated(self) -> bool:
        """Whether the verdict is a pass of what is served."""
        return self.lifetime.verdict.passed

    @property
    def verdict(self) -> str:
        """What the validator said of it: "pass", "fail", or why there is no verdict."""
        return self.lifetime.verdict.words

    async def metrics_text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return self.metrics.text()

    async def begin(self) -> None:
        """Nothing: the engine opens in a thread."""

    def wait(self) -> None:
        """Block until the engine is ready.

        Raises:
            MachineError: it did not open.
        """
        self.lifetime.wait()

    def wait_stopped(self) -> None:
        """Block until the engine has stopped: closed, or with `failure` set."""
        self.lifetime.wait_stopped()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait until all is answered; False if that takes too long."""
        return await self.lifetime.drain(timeout_s)

    def close(self) -> None:
        """End what runs and free the engine; a second call does nothing."""
        self.lifetime.close()
        self._close_workers()
        self._trial.close()

    def grammars(self) -> Grammars:
        """Grammars over the model's vocabulary, which is read when the first is asked for: that
        takes seconds, so call it in a worker."""
        with self._making:
            if self._grammars is None:
                engine = self.require()
                ends = end_tokens(engine.config, engine.tokenizer)
                self._grammars = VocabularyGrammars(
                    engine.tokenizer, engine.config.vocab_size, ends, self._trial
                )
            return self._grammars
