"""POST /v1/completions."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.engine import Answer

from .constraints import format_constraint
from .errors import RESPONSES
from .logprobs import TextLogprobs
from .prompts import answer_limit
from .request_log import note
from .schema import CompletionRequest
from .service import Service
from .streaming import Chunk, EventStream, accepted, cancel, merged, unless_gone, usage

router = APIRouter()


@router.post("/v1/completions", responses=RESPONSES)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue one prompt or several."""
    service: Service = request.app.state.service
    engine = service.require(body.model)
    note(user=body.user)
    prompts = await asyncio.to_thread(
        _prompts, engine.tokenizer, body.prompt, bos=body.add_special_tokens
    )
    for prompt in prompts:
        answer_limit(engine, len(prompt), body.max_tokens, "prompt")
    grammars = await service.grammars() if body.format else None
    answers = [
        engine.generate(
            prompt,
            body.params(index, max_tokens=body.max_tokens, logprobs=body.logprobs),
            constraint=format_constraint(body.format, grammars) if grammars else None,
            timeout_s=service.options.request_timeout_s,
            speculate=body.speculate,
        )
        for prompt in prompts
        for index in range(body.n)
    ]
    frame = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.model_name,
        "system_fingerprint": f"nemo-trt-{service.bundle.manifest.bundle_id[:12]}",
    }
    if service.options.log_text:
        note(prompt=[engine.tokenizer.decode(prompt) for prompt in prompts])
    await accepted(answers)
    choices = [
        _Choice(engine.tokenizer, engine.tokenizer.decode(prompt) if body.echo else "")
        for prompt in prompts
        for _ in range(body.n)
    ]
    if body.stream:
        return EventStream(answers, _chunks(frame, body, choices, answers))
    try:
        found = await unless_gone(request, _whole(choices, answers))
    finally:
        cancel(answers)
    if found is None:
        return Response(status_code=499)
    if service.options.log_text:
        note(answer=[choice["text"] for choice in found])
    return JSONResponse({**frame, "choices": found, "usage": usage(answers)})


class _Choice:
    """One continuation, behind its echoed prompt."""

    def __init__(self, tokenizer: Tokenizer, echo: str) -> None:
        self._echo, self._logprobs = echo, TextLogprobs(tokenizer)

    def push(self, event: TokenEvent) -> tuple[str, Chunk | None]:
        """Take a token; return the text that may be shown now, and its log-probabilities."""
        text, self._echo = self._echo + event.text, ""
        return text, self._logprobs.push(event)


def _prompts(
    tokenizer: Tokenizer, given: str | list[int] | list[str] | list[list[int]], *, bos: bool
) -> list[list[int]]:
    """Token ids of each prompt; texts get the start token, ids stay as they are."""
    if isinstance(given, str):
        return [tokenizer.encode(given, bos=bos)]
    texts = [item for item in given if isinstance(item, str)]
    if texts:
        return [tokenizer.encode(text, bos=bos) for text in texts]
    lists = [item for item in given if isinstance(item, list)]
    return lists or [[item for item in given if isinstance(item, int)]]


async def _whole(choices: Sequence[_Choice], answers: Sequence[Answer]) -> list[Chunk]:
    found: list[dict[str, Any]] = [
        {"index": index, "text": "", "logprobs": None, "finish_reason": None}
        for index in range(len(choices))
    ]
    async for index, event in merged(answers):
        text, logprobs = choices[index].push(event)
        one = found[index]
        one["text"] += text
        one["finish_reason"] = event.finish_reason
        if one["logprobs"] is None:
            one["logprobs"] = logprobs
        elif logprobs:
            for name, values in logprobs.items():
                one["logprobs"][name] += values
    note(end=[choice["finish_reason"] for choice in found])
    return found


async def _chunks(
    frame: Chunk, body: CompletionRequest, choices: Sequence[_Choice], answers: Sequence[Answer]
) -> AsyncIterator[Chunk]:
    base = {**frame, "usage": None} if body.include_usage else frame
    async for index, event in merged(answers):
        text, logprobs = choices[index].push(event)
        if text or logprobs or event.finish_reason:
            choice = {
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": event.finish_reason,
            }
            yield {**base, "choices": [choice]}
        if event.finish_reason:
            note(end=event.finish_reason)
    counted = usage(answers)
    if body.include_usage:
        yield {**base, "choices": [], "usage": counted}
