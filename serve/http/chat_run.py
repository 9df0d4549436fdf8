"""One conversation's answers, whatever the API that asked: started, then read piece by piece."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_trt.engines.generation import Constraint, TokenEvent
from nemo_trt.engines.tokenizers import Detokenizer, Tokenizer
from nemo_trt.serve.call_parser import CallParser
from nemo_trt.serve.engine import Answer, AsyncEngine
from nemo_trt.serve.grammars import Grammars
from nemo_trt.serve.scoring import PromptScores
from nemo_trt.serve.tools import ToolConstraint, require_tools

from .call_ids import new_id
from .constraints import format_constraint
from .logprobs import chat_logprob
from .message_schema import ChosenTool
from .prompts import answer_limit, conversation, predicted
from .request_log import note
from .schema import ChatRequest
from .service import Service
from .streaming import accepted, merged
from .tool_grammar import calls_grammar

Entry = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class CallPiece:
    """News of a call: with its first piece come its id and its function's name."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(slots=True, kw_only=True)
class Delta:
    """News of one answer.

    Attributes:
        index: of the answer.
        text: that may be shown now.
        logprobs: entries of OpenAI's form, of tokens that are shown as text.
        calls: news of calls.
        reason: why the answer ended, with its last news: "stop", "length" or "tool_calls".
    """

    index: int
    text: str = ""
    logprobs: list[Entry] = field(default_factory=list)
    calls: list[CallPiece] = field(default_factory=list)
    reason: str | None = None


@dataclass(slots=True, kw_only=True)
class ChatRun:
    """Answers that are under way.

    Attributes:
        headers: to be sent with the response.
        prompt_tokens: of the prompt, which all answers share.
        scores: of the prompt's tokens, where they were asked for.
    """

    answers: Sequence[Answer]
    choices: Sequence["Choice"]
    headers: dict[str, str]
    prompt_tokens: int
    scores: PromptScores | None
    tokenizer: Tokenizer

    async def deltas(self) -> AsyncIterator[Delta]:
        """News of all answers as they come."""
        async for index, event in merged(self.answers):
            delta = self.choices[index].push(event)
            delta.index = index
            if delta.reason:
                note(end=delta.reason)
            yield delta


async def start(body: ChatRequest, service: Service) -> ChatRun:
    """Have a conversation's answers accepted.

    Raises:
        ApiError, NemoTrtError: the request cannot be honoured, or not now.
    """
    engine = service.require(body.model)
    note(user=body.safety_identifier or body.user)
    offered = [] if body.tool_choice == "none" else body.tools
    trigger = None
    if offered:
        names = [tool.function.name for tool in offered]
        trigger = require_tools(engine.tokenizer.tool_calls_id, names)
    prompt = await conversation(
        engine.tokenizer,
        body.messages,
        offered,
        continue_final=body.continues,
        variables=body.chat_template_kwargs,
    )
    limit = answer_limit(engine, len(prompt), body.token_limit, "messages")
    prediction = await predicted(engine.tokenizer, body.prediction)
    constraints: list[Constraint | None] = [None] * body.n
    relaxed: list[str] = []
    if offered or body.format:
        grammars = await service.grammars()
        constraints, relaxed = await asyncio.to_thread(
            _constraints, body, engine, grammars, trigger
        )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    scores = None if body.prompt_logprobs is None else PromptScores(body.prompt_logprobs)
    group = object()
    answers = [
        engine.generate(
            prompt,
            body.params(index, max_tokens=limit, logprobs=logprobs),
            constraint=constraint,
            timeout_s=service.options.request_timeout_s,
            speculate=body.speculate,
            prediction=prediction,
            scores=scores if index == 0 else None,
            group=group,
        )
        for index, constraint in enumerate(constraints)
    ]
    choices = [Choice(engine.tokenizer, trigger, service.options.log_text) for _ in answers]
    if service.options.log_text:
        note(prompt=engine.tokenizer.decode(prompt))
    headers = {}
    if relaxed:
        note(relaxed_schemas=relaxed)
        headers["X-Relaxed-Schemas"] = ", ".join(relaxed)
    await accepted(answers)
    return ChatRun(
        answers=answers,
        choices=choices,
        headers=headers,
        prompt_tokens=len(prompt),
        scores=scores,
        tokenizer=engine.tokenizer,
    )


def _constraints(
    body: ChatRequest, engine: AsyncEngine, grammars: Grammars, trigger: int | None
) -> tuple[list[Constraint | None], list[str]]:
    """What each answer may consist of, and the fields whose schemas are enforced in part only."""
    found: list[Constraint | None] = []
    relaxed: list[str] = []
    free = body.tool_choice in (None, "auto")
    chosen = body.tool_choice.function.name if isinstance(body.tool_choice, ChosenTool) else None
    for _ in range(body.n):
        text = format_constraint(body.format, grammars)
        if trigger is None:
            found.append(text)
            continue
        calls, relaxed = calls_grammar(
            body.tools, chosen, grammars, several=body.parallel_tool_calls
        )
        found.append(
            ToolConstraint(
                trigger,
                engine.config.vocab_size,
                choice="auto" if free else "required",
                calls=calls,
                text=text if free else None,
            )
        )
    return found, relaxed


class Choice:
    """One answer: its text, and what follows [TOOL_CALLS] as calls."""

    def __init__(self, tokenizer: Tokenizer, trigger: int | None, log_text: bool) -> None:
        self._tokenizer, self._trigger, self._log_text = tokenizer, trigger, log_text
        self._text = ""  # all of it, as far as it may be shown
        self._before = ""  # what stands before the calls, whether it may be shown yet or not
        self._shown = 0
        self._calls: CallParser | None = None
        self._detokenizer = Detokenizer(tokenizer)

    def push(self, event: TokenEvent) -> Delta:
        """Take a token; return what it brings."""
        self._text += event.text
        delta = Delta(index=0)
        if self._calls is not None:
            delta.calls = self._call(self._detokenizer.push(event.token_id))
            delta.text = self._rest(whole=bool(delta.calls))
        elif event.token_id == self._trigger:
            self._calls = CallParser()
            self._before += self._detokenizer.flush()
            delta.text = self._rest()
        else:
            delta.logprobs = chat_logprob(event, self._tokenizer)
            delta.text = event.text
            self._shown += len(event.text)
            self._before += self._detokenizer.push(event.token_id)
        if event.finish_reason:
            whole = self._calls is not None and self._calls.complete
            delta.reason = "tool_calls" if whole else event.finish_reason
            if self._log_text:
                note(answer=self._text)
        return delta

    def _rest(self, *, whole: bool = False) -> str:
        """Text before the calls that is due: half a character, or what could become a stop string.

        Args:
            whole: a call follows, so all of it is.
        """
        due = self._before if whole else self._text[: len(self._before)]
        rest = due[self._shown :]
        self._shown += len(rest)
        return rest

    def _call(self, text: str) -> list[CallPiece]:
        pieces = []
        for news in self._calls.push(text) if self._calls else ():
            piece = CallPiece(
                index=news.index,
                id=new_id() if news.name is not None else None,
                name=news.name,
                arguments=news.arguments,
            )
            pieces.append(piece)
        return pieces
