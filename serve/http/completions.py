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
from nemo_trt.serve.scoring import PromptScores

from .bodies import JsonRoute
from .constraints import format_constraint
from .errors import RESPONSES
from .logprobs import TextLogprobs, prompt_entries
from .prompts import answer_limit
from .request_log import note
from .schema import CompletionRequest
from .service import Service
from .streaming import (
    Chunk,
    EventStream,
    accepted,
    cancel,
    merged,
    unless_gone,
    usage,
    usage_so_far,
)

router = APIRouter(route_class=JsonRoute)


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
    only = body.max_tokens == 0
    scores = [
        None if body.scored is None else PromptScores(body.scored)
        for _ in range(len(prompts) * body.n)
    ]
    group = object()
    answers = [
        engine.generate(
            prompt,
            body.params(index, max_tokens=body.max_tokens or 1, logprobs=body.logprobs),
            constraint=format_constraint(body.format, grammars) if grammars else None,
            timeout_s=service.options.request_timeout_s,
            speculate=body.speculate,
            scores=scores[at * body.n + index],
            score_only=only,
            group=group,
        )
        for at, prompt in enumerate(prompts)
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
        _Choice(engine.tokenizer, answer.prompt, scored, body)
        for answer, scored in zip(answers, scores, strict=True)
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
    """One continuation, after its echoed prompt."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        scores: PromptScores | None,
        body: CompletionRequest,
    ) -> None:
        self._tokenizer, self._prompt, self._scores = tokenizer, prompt, scores
        self._echo, self._asked = body.echo, body
        self._logprobs = TextLogprobs(tokenizer)

    def push(self, event: TokenEvent) -> tuple[str, Chunk | None]:
        """Take a token; return the text that may be shown now, and its log-probabilities."""
        echo, lists = self.prompt()
        return echo + event.text, _joined(lists, self._logprobs.push(event))

    def prompt(self) -> tuple[str, Chunk | None]:
        """The prompt and its log-probabilities, the first time and where they were asked for."""
        if not self._echo:
            return "", None
        self._echo = False
        text = self._tokenizer.decode(self._prompt)
        if self._asked.logprobs is None or self._scores is None:
            return text, None
        return text, self._logprobs.prompt(self._prompt, self._scores.scores)

    def extra(self) -> Chunk:
        """vLLM's `prompt_logprobs`, where they were asked for."""
        if self._asked.prompt_logprobs is None or self._scores is None:
            return {}
        return {"prompt_logprobs": prompt_entries(self._tokenizer, self._scores.scores)}


def _joined(first: Chunk | None, second: Chunk | None) -> Chunk | None:
    if first is None or second is None:
        return first or second
    return {name: values + second[name] for name, values in first.items()}


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
        {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
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
    for one, choice in zip(found, choices, strict=True):
        text, logprobs = choice.prompt()  # where not one token was asked for
        one["text"] += text
        one["logprobs"] = one["logprobs"] or logprobs
        one.update(choice.extra())
    note(end=[choice["finish_reason"] for choice in found])
    return found


async def _chunks(
    frame: Chunk, body: CompletionRequest, choices: Sequence[_Choice], answers: Sequence[Answer]
) -> AsyncIterator[Chunk]:
    base = {**frame, "usage": None} if body.include_usage else frame
    prompt_tokens = sum(len(answer.prompt) for answer in answers[:: body.n])
    completion_tokens = 0

    def chunk(index: int, text: str, logprobs: Chunk | None, reason: str | None) -> Chunk:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        told = {}
        if body.continuous_usage:
            told["usage"] = usage_so_far(prompt_tokens, completion_tokens)
        return {**base, "choices": [choice], **told}

    async for index, event in merged(answers):
        completion_tokens += 1
        text, logprobs = choices[index].push(event)
        if text or logprobs or event.finish_reason:
            yield chunk(index, text, logprobs, event.finish_reason)
        if event.finish_reason:
            note(end=event.finish_reason)
    if body.max_tokens == 0:
        for index, choice in enumerate(choices):
            yield chunk(index, *choice.prompt(), "length")
    counted = usage(answers)
    if body.include_usage:
        yield {**base, "choices": [], "usage": counted}
