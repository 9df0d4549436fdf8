"""What each request says: the same numbers for the same seed, whatever the server does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_trt.errors import RequestError

from .options import LoadOptions

Prompt = str | list[dict[str, Any]]

# Common words, which nearly every vocabulary has as one token each.
_COMMON = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city community name president team minute idea kid body information back "
    "parent face others level office door health person art war history party result change morning"
)
_WORDS = _COMMON.split()
_PREFIX_STREAM, _WARMUP_STREAM, _STREAM = 2, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A prompt's tokens by its words: `fixed + per_word * words`.

    Attributes:
        measured: by the server's own count; otherwise a guess.
    """

    fixed: float = 0.0
    per_word: float = 1.0
    measured: bool = False

    def words(self, tokens: int) -> int:
        """How many words make a prompt of so many tokens."""
        return max(1, round((tokens - self.fixed) / self.per_word))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request to send: its body, and after how many pieces to hang up, if at all."""

    body: dict[str, Any]
    output_tokens: int
    cancel_after: int | None


class Workload:
    """Makes the requests of a measurement.

    Raises:
        RequestError: the file of prompts holds none, or one of the wrong kind.
    """

    def __init__(self, options: LoadOptions, *, model: str, include_usage: bool, scale: Scale):
        self._options, self._model, self._include_usage = options, model, include_usage
        self._scale = scale
        self._prompts = read_prompts(options.prompts) if options.prompts else []
        for prompt, _ in self._prompts:
            request_body(options, model, prompt, 1, include_usage=include_usage)
        random = np.random.default_rng([options.seed, _PREFIX_STREAM])
        count = round(options.shared_prefix_tokens / scale.per_word)
        self._prefix = text_of(count, random) + " " if count else ""

    def request(self, index: int, *, warmup: bool = False) -> Planned:
        """The `index`-th request."""
        stream = _WARMUP_STREAM if warmup else _STREAM
        random = np.random.default_rng([self._options.seed, stream, index])
        prompt_tokens = self._options.prompt_tokens.draw(random)
        output_tokens = self._options.output_tokens.draw(random)
        cancels = random.random() < self._options.cancel_fraction and not warmup
        cancel_after = int(random.integers(output_tokens)) if cancels else None
        prompt: Prompt
        if self._prompts:
            prompt, own = self._prompts[index % len(self._prompts)]
            output_tokens = own or output_tokens
            if isinstance(prompt, str):
                prompt = self._prefix + prompt
        else:
            prompt = self._prefix + text_of(self._scale.words(prompt_tokens), random)
        body = request_body(
            self._options, self._model, prompt, output_tokens, include_usage=self._include_usage
        )
        return Planned(body=body, output_tokens=output_tokens, cancel_after=cancel_after)


def text_of(num_words: int, random: np.random.Generator) -> str:
    """Words by chance."""
    return " ".join(_WORDS[index] for index in random.integers(len(_WORDS), size=num_words))


def request_body(
    options: LoadOptions, model: str, prompt: Prompt, max_tokens: int, *, include_usage: bool
) -> dict[str, Any]:
    """A streamed request's body.

    Raises:
        RequestError: a conversation goes to the plain endpoint.
    """
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "stream": True}
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    if options.endpoint == "chat":
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body["messages"] = turns
    elif isinstance(prompt, str):
        body["prompt"] = prompt
    else:
        raise RequestError("Prompts that are conversations must go to the chat endpoint.")
    return body | dict(options.extra_body)


def read_prompts(path: Path) -> Sequence[tuple[Prompt, int | None]]:
    """Read a prompt a line: a JSON string, or an object with prompt or messages, and if it likes
    max_tokens.

    Raises:
        RequestError: a line is none of these, or there is none.
    """
    found: list[tuple[Prompt, int | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        prompt, own = item, None
        if isinstance(item, dict):
            prompt, own = item.get("prompt") or item.get("messages"), item.get("max_tokens")
        right = isinstance(prompt, str) and bool(prompt)
        if isinstance(prompt, list):
            right = all(isinstance(turn, dict) for turn in prompt)
        if not right or not (own is None or (type(own) is int and own > 0)):
            raise RequestError(
                f"Line {number} of {path} must be a JSON string, or an object with prompt or "
                f"messages, got {line[:60]!r}."
            )
        found.append((prompt, own))
    if not found:
        raise RequestError(f"{path} must hold at least one prompt, got none.")
    return found
