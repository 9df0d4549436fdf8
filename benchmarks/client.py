"""A streaming client for the benchmarks of this server: when each token came, and how it ended.

To load-test a deployment, use a load generator (docs/load.md).
"""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Self

import httpx


@dataclass(slots=True, kw_only=True)
class Answer:
    """One request. Times are seconds since it was sent.

    Attributes:
        outcome: "refused" is HTTP 429, "cancelled" is what `cancel_after` did.
        token_s: when each token came; the server sends one an event.
    """

    outcome: Literal["ok", "refused", "cancelled", "error"] = "error"
    error: str = ""
    token_s: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.token_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Time between one token and the next."""
        return [after - before for before, after in pairwise(self.token_s)]

    @property
    def tpot_s(self) -> float:
        """Mean time between tokens; 0 for a single one."""
        gaps = self.gaps_s
        return sum(gaps) / len(gaps) if gaps else 0.0


class Client:
    """Streams completions from one server; as many connections as there are requests."""

    def __init__(self, url: str, *, timeout_s: float = 600.0) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            timeout=timeout_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(
        self, prompt: list[int], max_tokens: int, *, cancel_after: int | None = None
    ) -> Answer:
        """One greedy answer of exactly `max_tokens`, or cut off after `cancel_after` of them."""
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "speculate": False,
            "temperature": 0,
        }
        answer, start = Answer(), time.perf_counter()
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    answer.outcome = "refused" if response.status_code == 429 else "error"
                    answer.error = (await response.aread()).decode(errors="replace")
                    return answer
                async for line in response.aiter_lines():
                    now = time.perf_counter() - start
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        answer.outcome = "ok"
                        break
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        answer.error = str(event["error"])
                        break
                    if usage := event.get("usage"):
                        answer.tokens = usage["completion_tokens"]
                    if event["choices"]:
                        answer.token_s.append(now)
                    if cancel_after is not None and len(answer.token_s) >= cancel_after:
                        answer.outcome = "cancelled"
                        break
        except httpx.HTTPError as error:
            answer.error = f"{type(error).__name__}: {error}"
        return answer

    async def loop(
        self, requests: Iterator[dict[str, Any]], *, clients: int, seconds: float | None = None
    ) -> list[Answer]:
        """Closed loop: clients that each send the next request when they have their answer.

        Args:
            requests: arguments of `ask`; the loop ends with them.
            seconds: nothing is sent after this time.
        """
        found: list[Answer] = []
        end = time.monotonic() + seconds if seconds is not None else None

        async def run() -> None:
            for request in requests:
                if end is not None and time.monotonic() >= end:
                    return
                answer = await self.ask(**request)
                found.append(answer)
                if answer.outcome == "refused":
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(run() for _ in range(clients)))
        return found
