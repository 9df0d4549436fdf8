"""One conversation's answers, whatever the API that asked: started, then read piece by piece."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_trt.engines.generation import Constraint, TokenEvent
from nemo_trt.engines.tokenizers import Detokenizer, Tokenizer
from nemo_trt.serve.answer import Answer
from nemo_trt.serve.call_parser import CallParser
from nemo_trt.serve.drafts import DraftSource
from nemo_trt.serve.interface import Engine
from nemo_trt.serve.scoring import PromptScores
from nemo_trt.serve.tools import ToolConstraint, require_tools

from .call_ids import new_id
from .constraints import format_constraint
from .logprobs import chat_logprob, require_few
from .message_schema import ChosenTool
from .prompts import answer_limit, conversation, drafts
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
        stop_text: the stop string that ended it.
    """

    index: int
    text: str = ""
    logprobs: list[Entry] = field(default_factory=list)
    calls: list[CallPiece] = field(default_factory=list)
    reason: str | None = None
    stop_text: str | None = None


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
    workers = service.compilers if offered or body.format else service.preparers
    prepared = await workers.run(_prepare, body, service, engine, trigger)
    prompt = prepared.prompt
    limit = answer_limit(engine, len(prompt), body.token_limit, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    scores = None if body.prompt_logprobs is None else PromptScores(body.prompt_logprobs)
    group = object()
    answers = [
        engine.generate(
            prompt,
            body.params(index, max_tokens=limit, logprobs=logprobs),
            constraint=prepared.constraint(),
            timeout_s=service.options.request_timeout_s,
            speculate=body.speculate,
            drafts=prepared.drafts,
            scores=scores if index == 0 else None,
            group=group,
        )
        for index in range(body.n)
    ]
    choices = [Choice(engine.tokenizer, trigger, service.options.log_text) for _ in answers]
    if prepared.shown is not None:
        note(prompt=prepared.shown)
    headers = {}
    if prepared.relaxed:
        note(relaxed_schemas=prepared.relaxed)
        headers["X-Relaxed-Schemas"] = ", ".join(prepared.relaxed)
    await accepted(answers)
    return ChatRun(
        answers=answers,
        choices=choices,
        headers=headers,
        prompt_tokens=len(prompt),
        scores=scores,
        tokenizer=engine.tokenizer,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What a request needs before its answers begin.

    Attributes:
        constraint: makes that of one answer.
        relaxed: fields whose schemas are enforced in part only.
        shown: the prompt's text, where it is logged.
    """

    prompt: list[int]
    drafts: DraftSource | None
    constraint: Callable[[], Constraint | None]
    relaxed: list[str]
    shown: str | None


def _prepare(body: ChatRequest, service: Service, engine: Engine, trigger: int | None) -> _Prepared:
    """Tokenize, and compile grammars, once for all answers; in a worker."""
    prompt = conversation(
        engine,
        body.messages,
        body.tools if trigger is not None else (),
        continue_final=body.continues,
        variables=body.chat_template_kwargs,
    )
    answer_limit(engine, len(prompt), body.token_limit, "messages")  # before more is done
    if body.prompt_logprobs is not None:
        require_few(len(prompt), body.prompt_logprobs, "prompt_logprobs")
    constraint, relaxed = _constraint(body, service, engine, trigger)
    return _Prepared(
        prompt=prompt,
        drafts=drafts(engine, prompt, body.prediction) if body.speculate else None,
        constraint=constraint,
        relaxed=relaxed,
        shown=engine.tokenizer.decode(prompt) if service.options.log_text else None,
    )


def _constraint(
    body: ChatRequest, service: Service, engine: Engine, trigger: int | None
) -> tuple[Callable[[], Constraint | None], list[str]]:
    if trigger is None and not body.format:
        return (lambda: None), []
    grammars = service.grammars()
    text = format_constraint(body.format, grammars)
    if trigger is None:
        return (lambda: text.fresh() if text else None), []
    chosen = body.tool_choice.function.name if isinstance(body.tool_choice, ChosenTool) else None
    calls, relaxed = calls_grammar(body.tools, chosen, grammars, several=body.parallel_tool_calls)
    free = body.tool_choice in (None, "auto")

    def fresh() -> ToolConstraint:
        return ToolConstraint(
            trigger,
            engine.config.vocab_size,
            choice="auto" if free else "required",
            calls=calls.fresh(),
            text=text.fresh() if text and free else None,
        )

    return fresh, relaxed


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
            delta.stop_text = event.stop
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
