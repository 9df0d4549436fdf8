"""The engine's side: serves the requests of front ends with the engine of this process."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nemo_trt.engines.end_tokens import end_tokens
from nemo_trt.errors import NemoTrtError, StateError
from nemo_trt.serve.grammars import CACHED, Grammar, VocabularyGrammars
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.log import LOG
from nemo_trt.serve.request import Ended, Output, Usage
from nemo_trt.serve.workers import Workers

from . import wire
from .channel import Channel
from .requests import RequestReader


@dataclass(slots=True, eq=False)
class _Asked:
    """A front end's request. See `nemo_trt.serve.listener.Asked`."""

    key: int
    arrival: float
    last_token: float | None = None
    waits: bool = False  # for its grammar
    cancelled: bool = False


class Link:
    """One front end, as the hub sees it; `Listener` of all its requests.

    Attributes:
        ready: set when it takes requests.
        lost: set when its process has gone; what it asked for is cancelled then.
    """

    def __init__(self, hub: "Hub", channel: Channel) -> None:
        self.ready, self.lost = asyncio.Event(), asyncio.Event()
        self._hub, self._channel = hub, channel
        self._reader = RequestReader(channel.send)
        self._asked: dict[int, _Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, settings: wire.Settings) -> None:
        """Tell the front end what it serves, and listen to it."""
        self._channel.start(self._heard, self._gone)
        self._channel.send(["begin", settings])
        self.tell_state()

    def tell_state(self) -> None:
        """Tell it where the engine's life stands."""
        self._channel.send(["state", self._hub.state()])

    def stop(self) -> None:
        """Have it finish what is under way and end."""
        self._channel.send(["stop"])

    def settle(self, asked: _Asked, error: NemoTrtError | None) -> None:
        """See `Listener`."""
        if error is not None:
            self._asked.pop(asked.key, None)
        self._channel.send(["settled", asked.key, wire.packed_error(error)])

    def tell(self, news: list[tuple[_Asked, Output]]) -> None:
        """See `Listener`."""
        rows = []
        for asked, output in news:
            # An engine that closes tells of an end in one thread, while another may, too.
            known = self._asked.get if output.ended is None else self._asked.pop
            if known(asked.key, None) is not None:
                rows.append(wire.packed_output(asked.key, output))
        self._channel.send(["news", rows])

    def _heard(self, message: Any) -> None:
        match message:
            case ["submit", key, packed]:
                self._submit(key, packed)
            case ["cancel", key]:
                self._cancel(key)
            case ["error", status]:
                self._hub.lifetime.metrics.count_error(status)
            case ["ask", number, what, argument]:
                self._begin(self._answer(number, what, argument))
            case ["ready"]:
                self.ready.set()
            case _:
                raise ValueError(f"unknown message {message!r}")

    def _submit(self, key: int, packed: dict[str, Any]) -> None:
        asked = self._asked[key] = _Asked(key, packed["arrival"])
        engine = self._hub.lifetime.engine
        if engine is None:
            self.settle(asked, StateError("The engine is not open yet. Try again in some seconds."))
        elif packed["constraint"] is None:
            engine.enqueue(self._reader.request(self, key, packed, None), asked, self)
        else:
            asked.waits = True
            self._begin(self._submit_constrained(asked, packed))

    async def _submit_constrained(self, asked: _Asked, packed: dict[str, Any]) -> None:
        """Compiled in a worker, for it may take a while, unless it was compiled before."""
        try:
            sources = self._reader.sources(packed["constraint"])
            grammars = {source: await self._hub.compiled(source) for source in sources}
        except Exception as error:
            self.settle(asked, _told(error))
            return
        asked.waits = False
        if asked.cancelled:
            self.settle(asked, None)
            usage = Usage(prompt_tokens=0)
            ended = Ended(reason="cancelled", usage=usage)
            self.tell([(asked, Output(request_id=0, event=None, ended=ended))])
            return
        engine = self._hub.lifetime.engine
        assert engine is not None
        request = self._reader.request(self, asked.key, packed, grammars)
        engine.enqueue(request, asked, self)

    def _cancel(self, key: int) -> None:
        asked = self._asked.get(key)
        if asked is None:
            return
        asked.cancelled = True
        if not asked.waits and self._hub.lifetime.engine is not None:
            self._hub.lifetime.engine.cancel(asked)

    async def _answer(self, number: int, what: str, argument: Any) -> None:
        value, error = None, None
        try:
            match what:
                case "metrics":  # the other messages that are there already are heard first
                    await asyncio.sleep(0)
                    value = self._hub.lifetime.metrics.text()
                case "compile":
                    await self._hub.compiled(argument)
                case _:
                    raise ValueError(f"unknown question {what!r}")
        except Exception as failed:
            error = _told(failed)
        self._channel.send(["reply", number, value, wire.packed_error(error)])

    def cancel_all(self) -> None:
        """End all that it asked for."""
        for key in list(self._asked):
            self._cancel(key)

    def _gone(self) -> None:
        self.cancel_all()
        self.lost.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _told(error: Exception) -> NemoTrtError:
    """What a front end is told of an error: whoever waits there must hear something."""
    if isinstance(error, NemoTrtError):
        return error
    LOG.error("a front end's question failed", exc_info=error)
    return StateError(f"The engine's process failed: {type(error).__name__}: {error}")


class Hub:
    """Serves front ends with one engine.

    Args:
        lifetime: of the engine.
        created: when the server started, in seconds since 1970.

    Attributes:
        links: the front ends that are there.
    """

    def __init__(self, lifetime: Lifetime, *, created: int) -> None:
        self.lifetime = lifetime
        self.links: list[Link] = []
        self._settings = wire.settings_of(
            lifetime.bundle.path,
            lifetime.bundle.bundle_id,
            lifetime.options,
            created=created,
            log_requests=LOG.isEnabledFor(logging.INFO),
        )
        self._closed = False
        self._compile: Callable[[str], Grammar] | None = None
        self._compilers = Workers("compile", threads=1, max_waiting=lifetime.options.max_queue)

    def join(self, channel: Channel) -> Link:
        """A front end has been started behind a channel."""
        link = Link(self, channel)
        self.links.append(link)
        link.start(self._settings)
        return link

    def leave(self, link: Link) -> None:
        """A front end is given up; what it asked for is cancelled."""
        self.links.remove(link)
        link.cancel_all()

    def tell_state(self) -> None:
        """Tell every front end where the engine's life stands."""
        for link in self.links:
            link.tell_state()

    def state(self) -> dict[str, Any]:
        """Where the engine's life stands, for front ends."""
        lifetime, engine = self.lifetime, self.lifetime.engine
        return {
            "state": lifetime.state,
            "failure": lifetime.failure,
            "validated": lifetime.verdict.passed,
            "verdict": lifetime.verdict.words,
            "startup_s": lifetime.startup_s,
            "facts": wire.packed_facts(engine.facts) if engine else None,
            "longest_token": engine.longest_token if engine else None,
        }

    async def compiled(self, source: str) -> Grammar:
        """A grammar in llguidance's own form, compiled in a worker.

        Raises:
            QueueFullError: too many wait.
            RequestError: what llguidance says of it.
            StateError: the hub has been closed.
        """
        try:
            return await self._compilers.run(self._compiled, source)
        except (asyncio.CancelledError, RuntimeError) as error:  # the workers' end
            if not self._closed:
                raise
            raise StateError("The engine is shutting down and takes no more requests.") from error

    def _compiled(self, source: str) -> Grammar:
        if self._compile is None:  # the vocabulary is read once
            engine = self.lifetime.engine
            assert engine is not None
            ends = end_tokens(engine.config, engine.tokenizer)
            grammars = VocabularyGrammars(engine.tokenizer, engine.config.vocab_size, ends)
            self._compile = lru_cache(maxsize=CACHED)(grammars.compiled)
        return self._compile(source)

    @property
    def failure(self) -> str | None:
        """What kept the engine from opening, or stopped it since."""
        return self.lifetime.failure

    def wait_stopped(self) -> None:
        """Block until the engine has stopped: closed, or with `failure` set."""
        self.lifetime.wait_stopped()

    async def drain(self, timeout_s: float) -> bool:
        """See `Lifetime.drain`; front ends are told first."""
        self.lifetime.refuse()
        self.tell_state()
        return await self.lifetime.drain(timeout_s)

    def close(self) -> None:
        """Close the engine, whose requests are told; a second call does nothing."""
        self._closed = True
        self.lifetime.close()
        self._compilers.close()
