"""POST /v1/completions."""

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from nemo_trt.engines.generation import TokenEvent
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.serve.answer import Answer
from nemo_trt.serve.grammars import Grammar
from nemo_trt.serve.interface import Engine
from nemo_trt.serve.scoring import PromptScores

from .bodies import JsonRoute
from .constraints import format_constraint
from .errors import RESPONSES
from .logprobs import TextLogprobs, prompt_entries, require_few, text_length
from .prompts import answer_limit, encoded, require_known, require_room
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
    note(user=body.user)
    run = await unless_gone(request, _start(body, service, service.require(body.model)))
    if run is None:
        return Response(status_code=499)
    frame = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.model_name,
        "system_fingerprint": f"nemo-trt-{service.bundle.manifest.bundle_id[:12]}",
    }
    if body.stream:
        return EventStream(run.answers, _chunks(frame, run))
    try:
        found = await unless_gone(request, _whole(run))
    finally:
        cancel(run.answers)
    if found is None:
        return Response(status_code=499)
    if service.options.log_text:
        note(answer=[choice["text"] for choice in found])
    answer = {**frame, "choices": found, "usage": usage(run.answers)}
    if not body.echo and body.scored is None:
        return JSONResponse(answer)
    whole = await service.preparers.run(_with_prompts, answer, run)
    return Response(whole, media_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Continuations that are under way: of each prompt `body.n`, one behind the other."""

    body: CompletionRequest
    service: Service
    prompts: Sequence["_Prompt"]
    answers: Sequence[Answer]
    tokenizer: Tokenizer

    def prompt(self, index: int) -> "_Prompt":
        """The prompt of an answer."""
        return self.prompts[index // self.body.n]

    async def events(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """The tokens as they come; where prompts are scored, none comes before the scores."""
        held: dict[int, list[tuple[int, TokenEvent]]] = defaultdict(list)
        scored: set[int] = set()
        async for index, event in merged(self.answers):
            first = index - index % self.body.n
            if index == first and first not in scored:
                scored.add(first)
                yield index, event
                for item in held.pop(first, ()):
                    yield item
            elif first in scored or self.body.scored is None:
                yield index, event
            else:
                held[first].append((index, event))


async def _start(body: CompletionRequest, service: Service, engine: Engine) -> _Run:
    """Have all continuations accepted.

    Raises:
        ApiError, NemoTrtError: the request cannot be honoured, or not now.
    """
    workers = service.compilers if body.format else service.preparers
    prompts, constraint = await workers.run(_prepare, body, service, engine)
    group = object()
    answers = [
        engine.generate(
            prompt.tokens,
            body.params(index, max_tokens=body.max_tokens or 1, logprobs=body.logprobs),
            constraint=constraint.fresh() if constraint else None,
            timeout_s=service.options.request_timeout_s,
            speculate=body.speculate,
            drafts=prompt.drafts,
            scores=prompt.scores if index == 0 else None,
            score_only=body.max_tokens == 0,
            group=group,
        )
        for prompt in prompts
        for index in range(body.n)
    ]
    if service.options.log_text:
        note(prompt=[prompt.text for prompt in prompts])
    await accepted(answers)
    return _Run(
        body=body,
        service=service,
        prompts=prompts,
        answers=answers,
        tokenizer=engine.tokenizer,
    )


def _prepare(
    body: CompletionRequest, service: Service, engine: Engine
) -> tuple[list["_Prompt"], Grammar | None]:
    """Tokenize, and compile the grammar, once for all continuations; in a worker."""
    prompts, are_tokens = _prompts(engine, body.prompt, bos=body.add_special_tokens)
    for tokens in prompts:
        answer_limit(engine, len(tokens), body.max_tokens, "prompt")
        if are_tokens:
            require_known(tokens, engine.config.vocab_size, "prompt")
    if body.scored is not None:
        param = "logprobs" if body.prompt_logprobs is None else "prompt_logprobs"
        require_few(sum(map(len, prompts)), body.scored, param)
    constraint = format_constraint(body.format, service.grammars()) if body.format else None
    shown = body.echo or service.options.log_text
    return [_Prompt(engine, tokens, body, shown=shown) for tokens in prompts], constraint


class _Prompt:
    """A prompt, and what an answer tells of it.

    Attributes:
        text: empty where nobody asks for it.
        scores: collected by the first of its answers.
        length: of its tokens' texts, where they are echoed.
    """

    def __init__(
        self, engine: Engine, tokens: list[int], body: CompletionRequest, *, shown: bool
    ) -> None:
        tokenizer = engine.tokenizer
        self.tokens, self._tokenizer, self._body = tokens, tokenizer, body
        self.text = tokenizer.decode(tokens) if shown else ""
        self.length = text_length(tokenizer, tokens) if body.echo else 0
        self.scores = None if body.scored is None else PromptScores(body.scored)
        self.drafts = engine.draft_source(tokens) if body.speculate else None
        self._lists: Chunk | None = None

    def echoed(self) -> tuple[str, Chunk | None]:
        """Its text and log-probabilities, where they were asked for."""
        if not self._body.echo:
            return "", None
        if self._body.logprobs is None or self.scores is None:
            return self.text, None
        if self._lists is None:  # the same for all its answers
            lists = TextLogprobs(self._tokenizer)
            top = self._body.logprobs
            self._lists = lists.prompt(self.tokens, self.scores.scores, top)
        return self.text, self._lists

    def entries(self) -> Chunk:
        """vLLM's `prompt_logprobs`, where they were asked for."""
        top = self._body.prompt_logprobs
        if top is None or self.scores is None:
            return {}
        return {"prompt_logprobs": prompt_entries(self._tokenizer, self.scores.scores, top)}


def _joined(first: Chunk | None, second: Chunk | None) -> Chunk | None:
    if first is None or second is None:
        return first or second
    return {name: values + second[name] for name, values in first.items()}


def _prompts(
    engine: Engine, given: str | list[int] | list[str] | list[list[int]], *, bos: bool
) -> tuple[list[list[int]], bool]:
    """Token ids of each prompt, and whether the client gave them; texts get the start token."""
    prompts: Any = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    if isinstance(prompts[0], list):
        return prompts, True
    for text in prompts:
        require_room(engine, [text], "prompt")
    return [encoded(engine, text, "prompt", bos=bos) for text in prompts], False


def _logprobs(run: _Run) -> list[TextLogprobs]:
    """What tells the log-probabilities of each answer."""
    found = range(len(run.answers))
    return [TextLogprobs(run.tokenizer, run.prompt(at).length) for at in found]


async def _whole(run: _Run) -> list[Chunk]:
    """The choices, without what they tell of their prompts."""
    found: list[dict[str, Any]] = [
        {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
        for index in range(len(run.answers))
    ]
    logprobs = _logprobs(run)
    async for index, event in merged(run.answers):
        one, lists = found[index], logprobs[index].push(event)
        one["text"] += event.text
        one["finish_reason"] = event.finish_reason
        if one["logprobs"] is None:
            one["logprobs"] = lists
        elif lists:
            for name, values in lists.items():
                one["logprobs"][name] += values
    note(end=[choice["finish_reason"] for choice in found])
    return found


def _with_prompts(answer: Chunk, run: _Run) -> bytes:
    """The body, with what each choice tells of its prompt."""
    for index, one in enumerate(answer["choices"]):
        text, lists = run.prompt(index).echoed()
        one["text"] = text + one["text"]
        one["logprobs"] = _joined(lists, one["logprobs"])
        one.update(run.prompt(index).entries())
    return to_json(answer)


async def _chunks(frame: Chunk, run: _Run) -> AsyncIterator[Chunk]:
    body = run.body
    base = {**frame, "usage": None} if body.include_usage else frame
    prompt_tokens = sum(len(prompt.tokens) for prompt in run.prompts)
    completion_tokens = 0
    begun: set[int] = set()

    def chunk(index: int, text: str, logprobs: Chunk | None, reason: str | None) -> Chunk:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        told = {}
        if body.continuous_usage:
            told["usage"] = usage_so_far(prompt_tokens, completion_tokens)
        return {**base, "choices": [choice], **told}

    async def echoed(index: int) -> tuple[str, Chunk | None]:
        begun.add(index)
        if body.scored is None:
            return run.prompt(index).echoed()
        return await run.service.preparers.run(run.prompt(index).echoed)

    logprobs = _logprobs(run)
    async for index, event in run.events():
        completion_tokens += 1
        before, lists = ("", None) if index in begun else await echoed(index)
        text, lists = before + event.text, _joined(lists, logprobs[index].push(event))
        if text or lists or event.finish_reason:
            yield chunk(index, text, lists, event.finish_reason)
        if event.finish_reason:
            note(end=event.finish_reason)
    if body.max_tokens == 0:
        for index in range(len(run.answers)):
            yield chunk(index, *await echoed(index), "length")
    counted = usage(run.answers)
    if body.include_usage:
        yield {**base, "choices": [], "usage": counted}
