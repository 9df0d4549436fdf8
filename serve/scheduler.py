"""Continuous batching: requests join and leave the rows of one session between its steps."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nemo_trt.engines.generation import Generation
from nemo_trt.engines.rows import Rows, common_prefix
from nemo_trt.engines.session import Logits, Session
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import (
    CapacityError,
    FaultError,
    MachineError,
    NemoTrtError,
    QueueFullError,
    RequestError,
)

from .drafts import DraftSource, PromptLookup, draft_length
from .request import Ended, Output, Reason, Request, Usage
from .scoring import SCORED_TOKENS

_LOG = logging.getLogger("nemo_trt.serve")
_MIN_COPY = 32
"""Tokens of a prefix below which copying it is not worth a look."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Live:
    """A request in the queue, or in a row."""

    request_id: int
    request: Request
    prompt: list[int]
    usage: Usage
    generation: Generation
    lookup: PromptLookup | None
    row: int = -1
    arrival: float = 0.0
    pending: list[int] = field(default_factory=list)  # not in the cache yet
    decoding: bool = False
    scored_at: int = 0  # when its prompt had its last turn

    @property
    def group(self) -> object:
        """Whose answers it belongs to."""
        return self if self.request.group is None else self.request.group


class Scheduler:
    """Shares a session's rows among requests. Not thread-safe; call `step` until `idle`.

    Each step runs one token (and its drafts) of every row that decodes, then at most
    `prefill_tokens` prompt tokens, shared evenly by the rows that have some left. So between two
    tokens of a request lie one decode step and `prefill_tokens` prompt tokens at most, however long
    the prompts are that arrive. Of prompts that are scored, one a step has its turn.

    Requests are admitted in the order of their arrival, but a group that has rows already lets
    those go first that have fewer: a request for many answers keeps nobody out.

    A finished row keeps its tokens. A prompt that begins like what any row holds, busy or not,
    starts from there: the row is rewound or its beginning copied.

    A request's tokens depend on its neighbours by rounding alone, its random numbers on its seed.

    Args:
        session: taken over whole: nobody else may step it.
        tokenizer: for text, stop strings and end tokens.
        prefill_tokens: prompt tokens a step.
        max_queue: groups of requests that may wait for a row.
        clock: seconds, for deadlines.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None = None,
        *,
        prefill_tokens: int = 512,
        max_queue: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if prefill_tokens < 1 or max_queue < 1:
            raise RequestError(
                f"prefill_tokens and max_queue must be 1 or more, got {prefill_tokens} and "
                f"{max_queue}."
            )
        self._session, self._tokenizer = session, tokenizer
        self._prefill_tokens, self._max_queue, self._clock = prefill_tokens, max_queue, clock
        self._rows = Rows(session)
        self._queue: deque[_Live] = deque()
        self._running: dict[int, _Live] = {}  # by row
        self._free = deque(range(session.max_batch))  # the one that was used longest ago first
        self._next_id = self._scored_steps = 0
        self._sound: Sequence[int] = ()  # the last prompt whose tokens were looked at

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._queue and not self._running

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def num_held_tokens(self) -> int:
        """Tokens that the rows' caches hold, those of finished requests included."""
        return sum(len(self._rows.held(row)) for row in range(self._session.max_batch))

    @property
    def num_running(self) -> int:
        """Requests that have a row."""
        return len(self._running)

    def submit(self, request: Request) -> int:
        """Queue a request; return the id that its outputs bear.

        Raises:
            CapacityError: the prompt does not leave room for one token.
            QueueFullError: `max_queue` groups wait, and this is another one.
            RequestError: the prompt is empty or names tokens that do not exist.
        """
        prompt = list(request.prompt)
        vocab_size, limit = self._session.config.vocab_size, self._session.max_seq_len
        if not prompt:
            raise RequestError("The prompt must hold at least one token.")
        if request.prompt is not self._sound:  # answers of one prompt share it
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                raise RequestError(
                    f"Tokens must be 0 to {vocab_size - 1}, got {min(prompt)} to {max(prompt)}."
                )
            self._sound = request.prompt
        if len(prompt) >= limit:
            raise CapacityError(
                f"The prompt must be shorter than max_seq_len, {limit} tokens, got {len(prompt)}."
            )
        self._require_place(request)
        config, speculate = self._session.config, request.speculate
        live = _Live(
            request_id=self._next_id,
            request=request,
            prompt=prompt,
            usage=Usage(prompt_tokens=len(prompt)),
            generation=Generation(
                0, prompt, request.params, config, self._tokenizer, request.constraint
            ),
            lookup=PromptLookup(request.drafts or DraftSource(prompt)) if speculate else None,
            arrival=self._clock(),
        )
        self._next_id += 1
        self._queue.append(live)
        return live.request_id

    def cancel(self, request_id: int) -> Output | None:
        """End a request now and free its row; None where it has ended already."""
        return next(iter(self._end(lambda live: live.request_id == request_id, "cancelled")), None)

    def step(self) -> list[Output]:
        """Run the session once for what decodes and once for what is prefilled.

        A failing session, or logits that are not finite, end the requests concerned with "error".
        """
        now = self._clock()
        outputs = self._end(
            lambda live: live.request.deadline is not None and live.request.deadline <= now,
            "deadline",
        )
        while self._queue and self._free:
            self._admit(self._next())
        decoding = [live for live in self._running.values() if live.decoding]
        if decoding:
            self._run(self._drafted(decoding), outputs)
        prefilling = [live for live in self._running.values() if live.pending and not live.decoding]
        if prefilling:
            self._prefill(prefilling, outputs)
        return outputs

    def _prefill(self, waiting: list[_Live], outputs: list[Output]) -> None:
        """Run a piece of the prompts. Scores need logits at every position: one row has its turn,
        the one that had it longest ago."""
        scored = [live for live in waiting if live.request.scores is not None]
        plain = [live for live in waiting if live.request.scores is None]
        turn = min(scored, key=lambda live: (live.scored_at, live.request_id), default=None)
        chosen = plain[: self._prefill_tokens - (turn is not None)]
        chunk = self._prefill_tokens // (len(chosen) + (turn is not None))
        if chosen:
            self._run({live.row: live.pending[:chunk] for live in chosen}, outputs)
        if turn is not None and self._running.get(turn.row) is turn:
            self._scored_steps += 1
            turn.scored_at = self._scored_steps
            self._run({turn.row: turn.pending[: min(chunk, SCORED_TOKENS)]}, outputs)

    def _require_place(self, request: Request) -> None:
        """A group that has a place, in the queue or in a row, has one for all of its requests."""
        served = {live.group for live in self._running.values()}
        waiting = {live.group for live in self._queue} - served
        if request.group in served | waiting or len(waiting) < self._max_queue + len(self._free):
            return
        raise QueueFullError(f"{len(waiting)} requests are waiting already. Try later.")

    def _next(self) -> _Live:
        """Take from the queue whose group has the fewest rows; of equals, the first."""
        rows = Counter(live.group for live in self._running.values())
        live = min(self._queue, key=lambda waiting: rows[waiting.group])
        self._queue.remove(live)
        return live

    def _admit(self, live: _Live) -> None:
        if live.request.scores is None:
            row, source, length = self._place(live.prompt)
        else:  # what the cache holds has no logits any more: leave it to others
            row = source = self._free[0]
            length = 0
        if row == source:
            self._rows.rewind(row, length)
        else:
            self._rows.copy(source, row, length)
        self._free.remove(row)
        live.row, live.usage.cached_tokens = row, length
        live.usage.queue_s = self._clock() - live.arrival
        live.pending = live.prompt[length:]
        self._running[row] = live

    def _place(self, prompt: list[int]) -> tuple[int, int, int]:
        """A free row for a prompt, the row that its beginning is in, and how long that is."""
        every = range(self._session.max_batch)
        shared = [common_prefix(self._rows.held(row), prompt) for row in every]
        oldest = self._free[0]
        row = max(self._free, key=shared.__getitem__)
        source = max(every, key=shared.__getitem__)
        if shared[source] >= shared[row] + _MIN_COPY:
            return oldest, source, shared[source]
        if 2 * shared[row] >= len(self._rows.held(row)):
            return row, row, shared[row]
        if shared[row] >= _MIN_COPY:  # leave what lies behind the beginning to others
            return oldest, row, shared[row]
        return oldest, oldest, shared[oldest]

    def _drafted(self, decoding: list[_Live]) -> dict[int, list[int]]:
        """By row the token to run, and what may follow it where that pays."""
        drafts = {live.row: self._draft(live) for live in decoding}
        rates = [live.lookup.rate if live.lookup and drafts[live.row] else 0 for live in decoding]
        length = draft_length(rates, lambda tokens: self._session.step_cost(len(rates), tokens))
        return {live.row: live.pending + drafts[live.row][:length] for live in decoding}

    def _draft(self, live: _Live) -> list[int]:
        room = self._session.max_seq_len - len(self._rows.held(live.row)) - 2
        left = live.request.params.max_tokens - live.usage.completion_tokens - 1
        return live.lookup.draft(min(room, left)) if live.lookup and min(room, left) > 0 else []

    def _run(self, work: dict[int, list[int]], outputs: list[Output]) -> None:
        """Run rows, one step for each span: a step that fails ends its own rows alone."""
        if work := self._with_room(work, outputs):
            for span in self._rows.spans(work):
                self._run_span(span, outputs)

    def _with_room(self, work: dict[int, list[int]], outputs: list[Output]) -> dict[int, list[int]]:
        """Grow the cache for rows. Without memory for it the longest row gives way: it is emptied
        when it rests, and else its request ends."""
        while work:
            try:
                self._rows.reserve(work)
                break
            except (CapacityError, MachineError) as error:
                row = self._rows.longest(work)
                if live := self._running.get(row):
                    outputs.append(self._finish(live, "error", error))
                elif self._rows.held(row):
                    self._rows.rewind(row)
                else:
                    break
                work = {other: tokens for other, tokens in work.items() if other != row}
            except NemoTrtError:  # the step meets it too, and ends its own rows
                break
        return work

    def _run_span(self, work: dict[int, list[int]], outputs: list[Output]) -> None:
        """Append tokens to rows, and sample where a row's tokens are all there."""
        decoding = all(self._running[row].decoding for row in work)
        scoring = any(self._running[row].request.scores is not None for row in work)
        num_logits = max(map(len, work.values())) if decoding or scoring else 1
        try:
            for row, logits in self._rows.append(work, num_logits=num_logits):
                live = self._running[row]
                try:
                    if live.decoding:
                        self._verify(live, work[row], logits, outputs)
                    else:
                        self._prefilled(live, work[row], logits, outputs)
                except NemoTrtError as error:
                    outputs.append(self._finish(live, "error", error))
                except Exception as error:  # one request's; its neighbours must not pay for it
                    outputs.append(self._finish(live, "error", _as_fault(error)))
        except NemoTrtError as error:  # the session: what the rows hold now is unknown
            hit = [self._running[row] for row in work if row in self._running]
            outputs.extend(self._finish(live, "error", error) for live in hit)

    def _prefilled(
        self, live: _Live, tokens: list[int], logits: Logits, outputs: list[Output]
    ) -> None:
        """A piece of the prompt has been run: score it, and sample behind the last one."""
        live.pending = live.pending[len(tokens) :]
        if live.request.scores is not None:
            live.request.scores.push(logits, [*tokens[1:], *live.pending[:1]])
        if live.pending:
            return
        if live.request.score_only:
            outputs.append(self._finish(live, "length"))
            return
        live.decoding = True
        self._verify(live, tokens[-1:], logits[-1:], outputs)

    def _verify(
        self, live: _Live, tokens: list[int], logits: Logits, outputs: list[Output]
    ) -> None:
        """Sample behind the token that was due, and behind each draft that turned out right."""
        drafts = tokens[1:]
        held = len(self._rows.held(live.row)) - len(drafts)
        accepted = 0
        while True:
            full = held + accepted + 1 >= self._session.max_seq_len
            event = live.generation.next(logits[accepted], last=full)
            live.usage.completion_tokens += 1
            if live.lookup:
                live.lookup.push(event.token_id)
            right = accepted < len(drafts) and event.token_id == drafts[accepted]
            accepted += right
            if event.finish_reason or not right:
                break
            outputs.append(Output(request_id=live.request_id, event=event, ended=None))
        self._rows.rewind(live.row, held + accepted)
        live.pending = [event.token_id]
        live.usage.drafted_tokens += len(drafts)
        live.usage.accepted_tokens += accepted
        ended = self._finish(live, event.finish_reason).ended if event.finish_reason else None
        outputs.append(Output(request_id=live.request_id, event=event, ended=ended))

    def _end(self, condition: Callable[[_Live], bool], reason: Reason) -> list[Output]:
        found = [live for live in (*self._queue, *self._running.values()) if condition(live)]
        return [self._finish(live, reason) for live in found]

    def _finish(self, live: _Live, reason: Reason, error: NemoTrtError | None = None) -> Output:
        if live.row < 0:
            self._queue.remove(live)
        else:
            del self._running[live.row]
            self._free.append(live.row)
            if isinstance(error, RequestError | FaultError | CapacityError):
                self._rows.rewind(live.row)
            elif error:  # the cache may hold what is not finite, which outlives a rewind
                self._rows.clear(live.row)
        ended = Ended(reason=reason, usage=live.usage, error=error)
        return Output(request_id=live.request_id, event=None, ended=ended)


def _as_fault(error: Exception) -> FaultError:
    _LOG.error("a request met a fault", exc_info=error)
    fault = FaultError(f"The request met a fault of nemo-trt: {type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault
