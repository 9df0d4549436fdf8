"""What Prometheus is told: times, tokens, queue and cache of one engine."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nemo_trt.engines.session import Session

from .listener import Asked
from .request import Output
from .scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one engine, in a registry of their own: two engines share nothing."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def made(kind: Callable[..., Any], name: str, words: str, **more: Any) -> Any:
            return kind(f"nemo_trt_{name}", words, registry=self._registry, **more)

        self._first = made(
            Histogram,
            "time_to_first_token_seconds",
            "Arrival to first token.",
            buckets=_LONG,
        )
        self._between = made(
            Histogram,
            "inter_token_latency_seconds",
            "Between two tokens of a request.",
            buckets=_SHORT,
        )
        self._whole = made(
            Histogram, "request_seconds", "Arrival to the end of the answer.", buckets=_LONG
        )
        self._queued = made(Histogram, "queue_seconds", "Arrival to a slot.", buckets=_LONG)
        self._prompt = made(Counter, "prompt_tokens", "Tokens of prompts.")
        self._cached = made(
            Counter, "prefix_hit_tokens", "Tokens of prompts that the cache held already."
        )
        self._generated = made(Counter, "generation_tokens", "Tokens of answers.")
        self._drafted = made(Counter, "draft_tokens", "Tokens drafted by prompt lookup.")
        self._accepted = made(
            Counter, "accepted_draft_tokens", "Drafted tokens that were the model's own."
        )
        self._requests = made(
            Counter, "requests", "Requests that had a place, by how they ended.", labelnames=["end"]
        )
        self._preempted = made(
            Counter, "preemptions", "Times that a request gave its pages up, to go on later."
        )
        self._errors = made(
            Counter, "errors", "HTTP answers that were errors, by status.", labelnames=["code"]
        )
        self._running = made(Gauge, "requests_running", "Requests that have a slot.")
        self._waiting = made(Gauge, "requests_waiting", "Requests in the queue.")
        self._slots = made(Gauge, "slots", "Requests that can run at once.")
        self._held = made(Gauge, "cache_tokens_used", "Tokens in the slots' caches, kept ones too.")
        self._capacity = made(Gauge, "cache_tokens", "Tokens that the slots' caches can hold.")
        self._pages = made(Gauge, "cache_pages", "Pages of the cache; 0 where it consists of rows.")
        self._held_pages = made(Gauge, "cache_pages_held", "Pages that requests hold.")
        self._kept_pages = made(Gauge, "cache_pages_kept", "Pages kept for prompts to come.")

    def watch(self, scheduler: Scheduler, session: Session) -> None:
        """Read queue and cache from here whenever the metrics are asked for."""
        self._running.set_function(lambda: scheduler.num_running)
        self._waiting.set_function(lambda: scheduler.num_waiting)
        self._held.set_function(lambda: scheduler.num_held_tokens)
        self._slots.set(session.max_batch)
        self._capacity.set(session.max_batch * session.max_seq_len)
        if pool := scheduler.pool:
            self._capacity.set(pool.num_pages * pool.page_tokens)
            self._pages.set(pool.num_pages)
            self._held_pages.set_function(lambda: pool.num_held)
            self._kept_pages.set_function(lambda: pool.num_kept)

    def count(self, output: Output, asked: Asked, now: float) -> None:
        """Take in news of a request; `now` in seconds of `time.perf_counter`."""
        if output.event:
            self._generated.inc()
            if asked.last_token is None:
                self._first.observe(now - asked.arrival)
            else:
                self._between.observe(now - asked.last_token)
            asked.last_token = now
        if output.ended:
            usage = output.ended.usage
            self._requests.labels(output.ended.reason).inc()
            self._whole.observe(now - asked.arrival)
            if usage.queue_s is not None:
                self._queued.observe(usage.queue_s)
                self._prompt.inc(usage.prompt_tokens)
                self._cached.inc(usage.cached_tokens)
            self._preempted.inc(usage.preemptions)
            self._drafted.inc(usage.drafted_tokens)
            self._accepted.inc(usage.accepted_tokens)

    def count_error(self, status: int) -> None:
        """An HTTP request was answered with an error."""
        self._errors.labels(str(status)).inc()

    def errors_text(self) -> bytes:
        """The errors alone, of a process that has no engine."""
        return generate_latest(self._errors)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
