"""What crosses between a front end and the engine, as values that msgpack holds.

A message is a list whose first item names it.

| from a front end | |
|---|---|
| `submit`, key, request | continue a prompt; the key is the front end's own |
| `cancel`, key | end it |
| `error`, status | an HTTP request was answered with an error |
| `ask`, number, "metrics" or "compile", argument | answered by `reply` |
| `ready` | it takes requests |

| from the engine's process | |
|---|---|
| `begin`, settings | the first message |
| `state`, fields | where the engine's life stands, whenever that changes |
| `settled`, key, error | a request was accepted or refused |
| `news`, rows | what a step brought to all requests of this front end |
| `scores`, key, scores | of a prompt's tokens, before its first news |
| `reply`, number, value, error | |
| `stop` | finish what is under way and end |
"""

from array import array
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import nemo_trt.errors
from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.errors import NemoTrtError
from nemo_trt.serve.interface import EngineFacts
from nemo_trt.serve.options import ServeOptions
from nemo_trt.serve.request import Ended, Output, Usage
from nemo_trt.serve.scoring import TokenScore

Packed = list[Any]
_USAGE = tuple(field.name for field in fields(Usage))


def packed_tokens(tokens: Sequence[int]) -> bytes:
    """Four bytes a token."""
    return array("i", tokens).tobytes()


def tokens_from(data: bytes) -> list[int]:
    """Of `packed_tokens`."""
    tokens = array("i")
    tokens.frombytes(data)
    return tokens.tolist()


def packed_params(params: SamplingParams) -> dict[str, Any]:
    """What differs from the defaults."""
    return _changed(params, fields(params))


def params_from(packed: dict[str, Any]) -> SamplingParams:
    """Of `packed_params`."""
    return SamplingParams(**_with_tuples(packed))


def packed_options(options: ServeOptions) -> dict[str, Any]:
    """Without the key of verdicts, which the engine's process alone asks for."""
    return _changed(options, [field for field in fields(options) if field.name != "verify_key"])


def options_from(packed: dict[str, Any]) -> ServeOptions:
    """Of `packed_options`."""
    return ServeOptions(**_with_tuples(packed))


def packed_facts(facts: EngineFacts) -> dict[str, Any]:
    """Every field."""
    return {field.name: getattr(facts, field.name) for field in fields(facts)}


def facts_from(packed: dict[str, Any]) -> EngineFacts:
    """Of `packed_facts`."""
    return EngineFacts(**packed)


def packed_error(error: NemoTrtError | None) -> Packed | None:
    """The class of `nemo_trt.errors` that it is, and its text."""
    if error is None:
        return None
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == _ERRORS.__name__]
    return [kinds[0], str(error)]


def error_from(packed: Packed | None) -> NemoTrtError | None:
    """Of `packed_error`."""
    if packed is None:
        return None
    name, text = packed
    error: NemoTrtError = getattr(_ERRORS, name)(text)
    return error


def packed_output(key: int, output: Output) -> Packed:
    """A row of `news`: key, event, end."""
    event, ended = output.event, output.ended
    row: Packed = [key, None, None]
    if event is not None:
        row[1] = [event.token_id, event.text]
        if event.logprob is not None or event.finish_reason is not None:
            row[1] += [event.logprob, event.top_logprobs, event.finish_reason, event.stop]
    if ended is not None:
        usage = [getattr(ended.usage, name) for name in _USAGE]
        row[2] = [ended.reason, usage, packed_error(ended.error)]
    return row


def output_from(packed: Packed) -> Output:
    """Of `packed_output`; its number is the front end's key."""
    key, event, ended = packed
    return Output(
        request_id=key,
        event=None if event is None else _event(*event),
        ended=None if ended is None else _ended(*ended),
    )


def packed_scores(scores: Sequence[TokenScore]) -> Packed:
    """A row each."""
    return [[score.token_id, score.logprob, score.rank, score.top] for score in scores]


def scores_from(packed: Packed) -> list[TokenScore]:
    """Of `packed_scores`."""
    return [
        TokenScore(token_id=token, logprob=logprob, rank=rank, top=_pairs(top))
        for token, logprob, rank, top in packed
    ]


def _event(
    token_id: int,
    text: str,
    logprob: float | None = None,
    top: Sequence[Packed] = (),
    reason: Any = None,
    stop: str | None = None,
) -> TokenEvent:
    return TokenEvent(
        row=0,
        token_id=token_id,
        text=text,
        logprob=logprob,
        top_logprobs=_pairs(top),
        finish_reason=reason,
        stop=stop,
    )


def _ended(reason: Any, usage: Packed, error: Packed | None) -> Ended:
    counted = Usage(**dict(zip(_USAGE, usage, strict=True)))
    return Ended(reason=reason, usage=counted, error=error_from(error))


def _pairs(top: Sequence[Packed]) -> tuple[tuple[int, float], ...]:
    return tuple([(token, logprob) for token, logprob in top]) if top else ()


def _changed(value: object, of: Sequence["Field[Any]"]) -> dict[str, Any]:
    found = {field.name: (getattr(value, field.name), field) for field in of}
    return {
        name: dict(now) if name == "logit_bias" else now
        for name, (now, field) in found.items()
        if now != field.default
    }


def _with_tuples(packed: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in packed.items()
    }


_ERRORS = nemo_trt.errors
Settings = dict[str, Any]


def settings_of(
    bundle: Path, bundle_id: str, options: ServeOptions, *, created: int, log_requests: bool
) -> Settings:
    """What a front end is told first."""
    return {
        "bundle": str(bundle.resolve()),
        "bundle_id": bundle_id,
        "options": packed_options(options),
        "created": created,
        "log_requests": log_requests,
    }
