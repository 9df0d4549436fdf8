"""What the routes talk to: a server's engine, its state, and workers that prepare requests."""

import time
from abc import ABC, abstractmethod
from typing import Protocol

from nemo_trt.bundle import Bundle
from nemo_trt.serve.grammars import Grammars
from nemo_trt.serve.interface import Engine, State
from nemo_trt.serve.options import ServeOptions
from nemo_trt.serve.workers import Workers

from .errors import ApiError


class ErrorCount(Protocol):
    """Counts answers with an error status."""

    def count_error(self, status: int) -> None:
        """An HTTP request was answered with an error."""


class Service(ABC):
    """A served model, whichever process its engine is in.

    Args:
        bundle: what is served.

    Attributes:
        parsers: parse and validate large bodies.
        preparers: tokenize.
        compilers: prepare requests with grammars, so that others need not wait for these.
    """

    def __init__(self, bundle: Bundle, options: ServeOptions) -> None:
        self.options = options
        self.bundle = bundle
        self.model_name = options.model_name or bundle.source_name
        self.created = int(time.time())
        self.parsers = Workers("parse", threads=1, max_waiting=options.max_queue)
        self.preparers = Workers("prepare", threads=2, max_waiting=options.max_queue)
        self.compilers = Workers("compile", threads=1, max_waiting=options.max_queue)

    @property
    @abstractmethod
    def engine(self) -> Engine | None:
        """None before it is ready."""

    @property
    @abstractmethod
    def metrics(self) -> ErrorCount:
        """Counts errors; there from the beginning."""

    @property
    @abstractmethod
    def startup_s(self) -> float | None:
        """Seconds that opening took; None before."""

    @property
    @abstractmethod
    def state(self) -> State:
        """Where the server's life stands."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """What kept the engine from opening, or stopped it since."""

    @property
    @abstractmethod
    def validated(self) -> bool:
        """Whether the verdict is a pass of what is served."""

    @property
    @abstractmethod
    def verdict(self) -> str:
        """What the validator said of it: "pass", "fail", or why there is no verdict."""

    @abstractmethod
    async def metrics_text(self) -> bytes:
        """All metrics in Prometheus's text format."""

    @abstractmethod
    def grammars(self) -> Grammars:
        """Grammars over the model's vocabulary; may take seconds, so call it in a worker."""

    def require(self, model: str | None = None) -> Engine:
        """The engine, for a request that names a model.

        Raises:
            ApiError: 503 when it is not ready, 404 when the model is another one.
        """
        if self.state != "ready" or self.engine is None:
            words = {
                "starting": "The server is starting; try again in some seconds.",
                "draining": "The server is shutting down and takes no more requests.",
            }.get(self.state, "The engine has failed; the server must be started again.")
            raise ApiError(503, words, code=self.state, headers={"Retry-After": "2"})
        if model not in (None, self.model_name):
            raise ApiError(
                404,
                f"The model {model!r} does not exist here; this server has {self.model_name!r}.",
                param="model",
                code="model_not_found",
            )
        return self.engine

    def describe(self) -> dict[str, object]:
        """What is served and how it is doing, for /health/ready and the page."""
        facts = self.engine.facts if self.engine else None
        return {
            "status": self.state,
            "model": self.model_name,
            "validation": self.verdict,
            "validated": self.validated,
            "bundle_id": self.bundle.bundle_id,
            "precision": self.bundle.precision,
            "compute_precision": facts.compute_precision if facts else None,
            "engine": facts.description if facts else None,
            "max_seq_len": facts.max_seq_len if facts else None,
            "slots": facts.slots if facts else None,
            "tools": bool(self.engine and self.engine.tokenizer.tool_calls_id is not None),
            "startup_s": self.startup_s,
            "failure": self.failure,
        }

    @abstractmethod
    async def begin(self) -> None:
        """Called in the event loop of the application's requests, before the first of them."""

    @abstractmethod
    def wait(self) -> None:
        """Block until the engine is ready.

        Raises:
            MachineError: it did not open.
        """

    @abstractmethod
    def wait_stopped(self) -> None:
        """Block until the engine has stopped: closed, or with `failure` set."""

    @abstractmethod
    async def drain(self, timeout_s: float) -> bool:
        """Take nothing more and wait until all is answered; False if that takes too long."""

    @abstractmethod
    def close(self) -> None:
        """End what runs and free the engine; a second call does nothing."""

    def _close_workers(self) -> None:
        for workers in (self.parsers, self.preparers, self.compilers):
            workers.close()
