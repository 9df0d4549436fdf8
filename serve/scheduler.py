"""Continuous batching: requests join and leave the rows of one session between its steps."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping

from nemo_trt.engines.page_pool import PagePool
from nemo_trt.engines.paged_rows import PagedRows, rows_of
from nemo_trt.engines.row_steps import Step
from nemo_trt.engines.session import Session
from nemo_trt.engines.step_result import Samples
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import CapacityError, MachineError, NemoTrtError, RequestError

from .admission import Admission
from .ahead import Ahead, prepared
from .drafted import drafted
from .live import Flight, Live, Turn
from .request import Ended, Output, Reason, Request
from .scoring import SCORED_TOKENS
from .turns import Turns, as_error, learn

_LOG = logging.getLogger("nemo_trt.serve")


class Scheduler:
    """Shares a session's rows among requests. Not thread-safe; call `step` until `idle`.

    Each step runs one token (and its drafts) of every row that decodes, then at most
    `prefill_tokens` prompt tokens, shared evenly by the rows that have some left. So between two
    tokens of a request lie one decode step and `prefill_tokens` prompt tokens at most, however long
    the prompts are that arrive. Of prompts that are scored, one a step has its turn.

    Where the session overlaps, what follows is launched as soon as the tokens are known; text, stop
    strings, grammars and outputs come while it runs. An answer that ends by its text ends one step
    late, and that step's token is dropped.

    Requests are admitted in the order of their arrival, but a group that has rows already lets
    those go first that have fewer: a request for many answers keeps nobody out.

    A finished row keeps its tokens. A prompt that begins like what any row holds, busy or not,
    starts from there: the row is rewound or its beginning copied. A prompt that begins like one
    that is being run waits for it.

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
        self._session, self._prefill_tokens, self._clock = session, prefill_tokens, clock
        self._rows = rows_of(session)
        self._places = Admission(session, self._rows, tokenizer, max_queue=max_queue, clock=clock)
        self._turns = Turns(session, self._rows, self._places)
        self._cycle: Iterator[Flight] = iter(())  # what is left of a step
        self._flight: Flight | None = None
        self._ahead: Ahead | None = None  # the step behind the flight
        self._scored_steps = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._places.queue and not self._places.running and self._flight is None

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._places.queue)

    @property
    def num_held_tokens(self) -> int:
        """Tokens that the cache holds, those of finished requests included."""
        return self._rows.num_held_tokens

    @property
    def pool(self) -> PagePool | None:
        """The cache's pages, to look at; None where it consists of rows."""
        return self._rows.pool if isinstance(self._rows, PagedRows) else None

    @property
    def num_running(self) -> int:
        """Requests that have a row."""
        return len(self._places.running)

    def submit(self, request: Request) -> int:
        """Queue a request; return the id that its outputs bear.

        Raises:
            CapacityError: the prompt does not leave room for one token.
            QueueFullError: `max_queue` groups wait, and this is another one.
            RequestError: the prompt is empty or names tokens that do not exist.
        """
        return self._places.submit(request)

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
        if self._flight is None:
            self._cycle = self._plan()
            self._launch_next(outputs)
        while (flight := self._flight) is not None:
            ahead, self._ahead = self._ahead, None
            taken = self._collect(flight, ahead, outputs)
            late: list[Output] = []  # ends of requests, some of whose tokens are to be told yet
            whole = self._flight is not flight or not self._launch_next(late)
            if self._flight is None and self._session.overlaps:
                self._cycle = self._plan()
                self._launch_next(late)
            for one in taken:
                self._turns.tell(one, outputs)
            outputs.extend(late)
            if whole:
                if self._flight is not None:
                    limit = self._session.max_seq_len
                    self._ahead = prepared(self._flight, self._places, self._rows, limit, ahead)
                break
        return outputs

    def _plan(self) -> Iterator[Flight]:
        """The runs of one step; each is made when the one before it has been collected."""
        self._places.admit()
        decoding = [live for live in self._places.running.values() if live.decoding]
        if decoding:
            yield from self._flights(drafted(decoding, self._rows, self._session))
        yield from self._plan_prompts()

    def _plan_prompts(self) -> Iterator[Flight]:
        """What follows the decode step."""
        self._places.admit()
        running = self._places.running.values()
        waiting = [live for live in running if not live.decoding and self._places.may_run(live)]
        if not waiting:
            return
        # Scores need logits at every position: one row has its turn, longest ago first.
        scored = [live for live in waiting if live.scoring]
        plain = [live for live in waiting if not live.scoring]
        turn = min(scored, key=lambda live: (live.scored_at, live.request_id), default=None)
        chosen = plain[: self._prefill_tokens - (turn is not None)]
        chunk = self._prefill_tokens // (len(chosen) + (turn is not None))
        if chosen:
            yield from self._flights({live.row: live.pending[:chunk] for live in chosen})
        if turn is not None and self._places.has_row(turn):
            self._scored_steps += 1
            turn.scored_at = self._scored_steps
            yield from self._flights({turn.row: turn.pending[: min(chunk, SCORED_TOKENS)]})

    def _flights(self, work: dict[int, list[int]]) -> Iterator[Flight]:
        """One for each span: a step that fails ends its own rows alone."""
        lives = {row: self._places.running[row] for row in work}
        for span in self._rows.spans(work):
            rows = [row for row in span if self._places.has_row(lives[row])]
            if rows:
                yield Flight({row: work[row] for row in rows}, {row: lives[row] for row in rows})

    def _launch_next(self, ended: list[Output]) -> bool:
        """Launch the next run of this step; False where there is none."""
        while True:
            self._places.slots.clean()
            flight = self._flight = next(self._cycle, None)
            if flight is None:
                return False
            flight.work = self._with_room(flight.work, ended)
            flight.lives = {row: flight.lives[row] for row in flight.work}
            if flight.work:
                break
        lives = flight.lives.values()
        every = any(live.decoding or live.scoring for live in lives)
        try:
            flight.step = self._rows.launch(
                flight.work,
                num_logits=max(map(len, flight.work.values())) if every else 1,
                temperatures={
                    row: live.request.params.temperature for row, live in flight.lives.items()
                },
            )
        except NemoTrtError as error:
            flight.error = error
        return True

    def _with_room(
        self, work: Mapping[int, list[int]], ended: list[Output]
    ) -> Mapping[int, list[int]]:
        """Grow the cache for rows. Without memory for it a row gives way: it is emptied when it
        rests, its request waits for pages, or it ends."""
        while work:
            try:
                self._rows.reserve(work)
                break
            except (CapacityError, MachineError) as error:
                row = self._places.gives_way(work)
                if live := self._places.running.get(row):
                    if not self._places.preempt(live):
                        ended.append(self._finish(live, "error", error))
                elif self._rows.held(row):
                    self._rows.rewind(row)
                else:
                    break
                work = {other: tokens for other, tokens in work.items() if other != row}
            except NemoTrtError:  # the step meets it too, and ends its own rows
                break
        return work

    def _collect(self, flight: Flight, ahead: Ahead | None, outputs: list[Output]) -> list[Turn]:
        """Wait for a run, and take the tokens of those who are still there.

        Where the next step is prepared it is launched as soon as the tokens are known.
        """
        try:
            if flight.error is not None:
                raise flight.error
            assert flight.step is not None
            result = flight.step.wait()
        except NemoTrtError as error:  # the session: what the rows hold now is unknown
            for row, live in flight.lives.items():
                if self._places.has_row(live):
                    outputs.append(self._finish(live, "error", error))
                else:
                    self._places.slots.taint(row)
            return []
        if ahead and ahead.changes == self._places.changes and not self._places.may_admit:
            samples = Samples(result, ahead.at, ahead.draws)
            learn(ahead.due, samples)
            self._launch_ahead(ahead, flight, samples)
            flight.step.settle()
            self._turns.take(ahead.due, flight, samples)
            return ahead.due
        flight.step.settle()
        due: list[Turn] = []
        for row, live in flight.lives.items():
            if not self._places.has_row(live):
                continue
            tokens = flight.work[row]
            if live.decoding:
                due.append(Turn(live, tokens[1:]))
                continue
            try:
                ready = self._prefilled(live, tokens, flight.step, outputs)
            except Exception as error:  # one request's; its neighbours must not pay for it
                outputs.append(self._finish(live, "error", as_error(error)))
                continue
            if ready:
                due.append(Turn(live, []))
        self._turns.take(due, flight)
        return due

    def _prefilled(self, live: Live, tokens: list[int], step: Step, outputs: list[Output]) -> bool:
        """A piece of the prompt has been run: score it; whether a token follows."""
        live.pending = live.pending[len(tokens) :]
        if live.scoring and live.request.scores is not None:
            end = len(self._rows.held(live.row))
            first = max(live.num_scored - (end - len(tokens)), 0)  # run again: it has its scores
            following = [*tokens[1:], *live.pending[:1]]
            if first < len(tokens):
                logits = step.logits(live.row, first, len(tokens))
                live.request.scores.push(logits, following[first:])
                live.num_scored = end
        if live.pending:
            return False
        if live.request.score_only:
            outputs.append(self._finish(live, "length"))
            return False
        live.decoding = True
        return True

    def _launch_ahead(self, ahead: Ahead, flight: Flight, samples: Samples) -> None:
        """Launch what was prepared, unless a row met an error or is to run drafts."""
        if samples.errors:
            return
        if any(live.lookup for live in ahead.lives.values()):
            assert flight.step is not None
            flight.step.settle()
            for one, token in zip(ahead.due, samples.tokens, strict=True):
                one.live.pending = [token]
            work = drafted(list(ahead.lives.values()), self._rows, self._session)
            if any(len(tokens) > 1 for tokens in work.values()):
                return
        following = ahead.launched(samples.tokens)
        if following is not None:
            self._flight, self._cycle = following, self._plan_prompts()

    def _end(self, condition: Callable[[Live], bool], reason: Reason) -> list[Output]:
        return [self._finish(live, reason) for live in self._places.find(condition)]

    def _finish(self, live: Live, reason: Reason, error: NemoTrtError | None = None) -> Output:
        self._places.release(live, error)
        ended = Ended(reason=reason, usage=live.usage, error=error)
        return Output(request_id=live.request_id, event=None, ended=ended)
