"""Asks a server, before the measurement, for its model, its count of tokens and what it allows."""

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from nemo_trt.errors import RequestError, ServerError

from .client import Client, error_text
from .options import LoadOptions
from .record import Record
from .workload import Scale, read_prompts, request_body, text_of

_FEW, _MANY = 8, 128
_GUESS = Scale(per_word=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server told.

    Attributes:
        include_usage: whether it counts the tokens of a stream.
        scale: how words become prompt tokens there.
        product: its Server header.
    """

    model: str
    include_usage: bool
    scale: Scale
    product: str | None


async def probe(client: Client, options: LoadOptions) -> Server:
    """Send two or three requests for one token each.

    Raises:
        RequestError: the server does not want what was asked for; its own words are told.
        ServerError: it does not answer, wants another key, or has no such model.
    """
    model, product = await _model(client, options)
    random = np.random.default_rng([options.seed, 0])
    if options.prompts:
        prompt, _ = read_prompts(options.prompts)[0]
    else:
        prompt = text_of(_FEW, random)
    include_usage = True
    body = request_body(options, model, prompt, 1, include_usage=True)
    first = await _ask(client, body)
    if first.status in (400, 422):  # perhaps it knows no stream_options
        body = request_body(options, model, prompt, 1, include_usage=False)
        again = await _ask(client, body)
        if again.outcome == "ok":
            first, include_usage = again, False
    _require(first, options, model)
    scale = _GUESS
    if not options.prompts and first.prompt_tokens:
        scale = Scale(per_word=first.prompt_tokens / _FEW, measured=True)
        many = max(2 * _FEW, min(_MANY, options.prompt_tokens.typical))
        body = request_body(options, model, text_of(many, random), 1, include_usage=include_usage)
        second = await _ask(client, body)
        if second.outcome == "ok" and (second.prompt_tokens or 0) > first.prompt_tokens:
            slope = ((second.prompt_tokens or 0) - first.prompt_tokens) / (many - _FEW)
            fixed = first.prompt_tokens - slope * _FEW
            scale = Scale(fixed=fixed, per_word=slope, measured=True)
    counted = include_usage and first.counted_by == "usage"
    return Server(model=model, include_usage=counted, scale=scale, product=product)


async def _model(client: Client, options: LoadOptions) -> tuple[str, str | None]:
    url = f"{options.base_url}/models"
    try:
        response = await client.http.get(url, timeout=options.timeout_s)
    except httpx.HTTPError as error:
        words = str(error) or type(error).__name__
        raise ServerError(
            f"{options.base_url} must be the address of a server that answers, got: {words}. "
            "Is it up, and is the address right?"
        ) from error
    if response.status_code in (401, 403):
        raise _refused_key(options, error_text(response.content))
    product = response.headers.get("server")
    if options.model is not None:
        return options.model, product
    try:
        return str(response.json()["data"][0]["id"]), product
    except (ValueError, LookupError, TypeError):
        raise ServerError(
            f"{url} must list a model, got status {response.status_code}. Name the model."
        ) from None


async def _ask(client: Client, body: dict[str, Any]) -> Record:
    record = Record(index=-1, intended_s=client.now(), planned_output_tokens=1)
    await client.send(record, body)
    return record


def _require(record: Record, options: LoadOptions, model: str) -> None:
    if record.outcome == "ok":
        return
    words = record.error or record.outcome
    if record.status in (401, 403):
        raise _refused_key(options, words)
    if record.status == 404:
        raise ServerError(
            f"The server must have the model {model!r} and the {options.endpoint} endpoint, got "
            f"404: {words}"
        )
    if record.status in (400, 422):
        raise RequestError(f"The server must accept the requests, got {record.status}: {words}")
    raise ServerError(f"A first request must be answered, got {record.status or 'none'}: {words}.")


def _refused_key(options: LoadOptions, words: str) -> ServerError:
    given = "the one that was given" if options.api_key else "none"
    return ServerError(f"The server must be given an API key that it knows, got {given}: {words}")
