"""What load to put on which server."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nemo_trt.errors import RequestError

from .arrivals import Arrivals
from .lengths import Lengths

Endpoint = Literal["chat", "completions"]
_PROMPT = Lengths(kind="fixed", low=128)
_OUTPUT = Lengths(kind="fixed", low=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Settings of one measurement.

    Attributes:
        url: the server, with or without /v1.
        model: by default the first that the server lists.
        endpoint: chat completions, or plain ones.
        concurrency: closed loop: so many clients, each of which sends its next request when it has
            its answer. Excludes `rate`.
        rate: open loop: requests a second, whatever the server does.
        arrivals: how an open loop's requests are spread.
        num_requests, duration_s: when sending ends, whichever is first; at least one is needed.
        num_warmup: requests beforehand, which no figure contains.
        prompt_tokens, output_tokens: lengths. A prompt's is met to within its words.
        prompts: JSONL file of prompts, which replaces `prompt_tokens`.
        shared_prefix_tokens: tokens that all prompts begin with, in addition to `prompt_tokens`.
        cancel_fraction: share of requests that hang up somewhere in their answer.
        extra_body: fields for every request, which win over ours.
        timeout_s: of a whole request.
        slo_ttft_s, slo_itl_s: limits that goodput asks for: of the time to the first token, and of
            a request's mean time between tokens.
    """

    url: str
    model: str | None = None
    endpoint: Endpoint = "chat"
    concurrency: int | None = None
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    num_requests: int | None = None
    duration_s: float | None = None
    num_warmup: int = 4
    prompt_tokens: Lengths = _PROMPT
    output_tokens: Lengths = _OUTPUT
    prompts: Path | None = None
    shared_prefix_tokens: int = 0
    cancel_fraction: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 600.0
    api_key: str | None = field(default=None, repr=False)
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise RequestError(f"url must begin with http:// or https://, got {self.url!r}.")
        if (self.concurrency is None) == (self.rate is None):
            raise RequestError(
                "Either concurrency (a closed loop) or rate (an open one) must be given, got "
                f"{self.concurrency} and {self.rate}."
            )
        if self.num_requests is None and self.duration_s is None:
            raise RequestError("A number of requests or a duration must be given, got neither.")
        positive = ("concurrency", "rate", "num_requests", "duration_s", "timeout_s")
        for name in (*positive, "slo_ttft_s", "slo_itl_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(f"{name} must be above 0, got {value}.")
        for name in ("num_warmup", "shared_prefix_tokens", "seed"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.cancel_fraction <= 1:
            raise RequestError(f"cancel_fraction must be 0 to 1, got {self.cancel_fraction}.")

    @property
    def base_url(self) -> str:
        """The address under which OpenAI's routes lie."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"

    def describe(self) -> dict[str, Any]:
        """The settings for a report; the key is not among them."""
        found: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Lengths | Path):
                value = str(value)
            if one.name != "api_key":
                found[one.name] = dict(value) if isinstance(value, Mapping) else value
        return found
