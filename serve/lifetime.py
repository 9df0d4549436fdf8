"""A served engine from its opening to its close: starting, ready, draining, failed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from nemo_trt.bundle import Bundle
from nemo_trt.defaults import SLOTS
from nemo_trt.engines.ort_session import affordable_seq_len
from nemo_trt.engines.ownership import Ownership
from nemo_trt.engines.runner import Runner
from nemo_trt.errors import MachineError, NemoTrtError, StateError
from nemo_trt.verdict import Verdict
from nemo_trt.where import Where

from .approval import open_judged, require_verdict
from .engine import AsyncEngine
from .interface import State
from .metrics import Metrics
from .options import ServeOptions

Opener = Callable[[], Runner]
CACHE_SHARE = 0.25  # of this machine's memory, for the slots of a bundle that runs on its CPU


class Lifetime:
    """Opens an engine in a thread, at once, and knows where its life stands.

    Args:
        bundle: whose verdict counts.
        verdict: of `require_verdict`.
        opener: opens the Runner; called in a thread of its own.

    Attributes:
        engine: None before it is ready.
        metrics: there from the beginning.
        verdict: what the validator said of what is served.
        startup_s: seconds that opening took; None before.
    """

    def __init__(
        self, bundle: Bundle, verdict: Verdict, opener: Opener, options: ServeOptions
    ) -> None:
        self.bundle, self.options, self.verdict = bundle, options, verdict
        self.metrics = Metrics()
        self.engine: AsyncEngine | None = None
        self.startup_s: float | None = None
        self._opening_failure: str | None = None
        self._draining = False
        self._opener = opener
        self._ownership = Ownership("a server")
        self._thread = threading.Thread(target=self._open, name="nemo-trt open", daemon=True)
        self._thread.start()

    @classmethod
    def begin(
        cls,
        source: Bundle | Path | Runner,
        where: Where | str,
        options: ServeOptions,
        *,
        max_batch: int | None = None,
        max_seq_len: int | None = None,
        threads: int | None = None,
    ) -> Self:
        """Begin to open a bundle that may be served. For the arguments see `create_app`.

        Raises:
            BundleError: the bundle is missing, or has not passed validation for these rows and this
                context.
            BuildError: the bundle has no such engine.
        """
        if isinstance(source, Runner):
            session = source.session
            bundle, where = session.bundle, session.where
            max_batch, max_seq_len = session.max_batch, session.max_seq_len
        else:
            bundle, where = Bundle.open(source), Where.of(where)
        verdict = require_verdict(
            bundle, where, options, max_batch=max_batch, max_seq_len=max_seq_len
        )
        judged = verdict.coverage if verdict.passed else None

        def opener() -> Runner:
            if isinstance(source, Runner):
                return source
            rows, length = max_batch, max_seq_len
            if where.kind != "engine":
                rows = rows or (min(SLOTS, judged.max_batch) if judged else SLOTS)
                length = length or (judged.max_seq_len if judged else None)
            if where.kind == "cpu":
                affordable = affordable_seq_len(bundle.config, rows or 1, share=CACHE_SHARE)
                length = max_seq_len or min(affordable, length or affordable)
            return Runner.open(bundle, where, max_batch=rows, max_seq_len=length, threads=threads)

        return cls(bundle, verdict, opener, options)

    @property
    def state(self) -> State:
        """Where its life stands."""
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

    def refuse(self) -> None:
        """Take nothing more from now on."""
        self._draining = True

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait until all is answered; False if that takes too long."""
        self.refuse()
        if self.engine is None or not self._ownership.is_here:
            return True
        return await self.engine.drain(timeout_s)

    def close(self) -> None:
        """End what runs and free the engine; a second call does nothing."""
        self._draining = True
        self._thread.join()
        if self.engine:
            self.engine.close()

    def _open(self) -> None:
        start = time.perf_counter()
        try:
            runner, self.verdict = open_judged(
                self.bundle, self.verdict, self.options, self._opener
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
            self.startup_s = round(time.perf_counter() - start, 3)
            self.engine = engine
        except NemoTrtError as error:
            self._opening_failure = str(error)
        except Exception as error:  # a thread's exception would be lost, and all would wait
            self._opening_failure = _in_words(error)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
