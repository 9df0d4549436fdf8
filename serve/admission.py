"""Who gets a row, and when: the queue, the rows' holders, and prompts that wait for each other."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from nemo_trt.engines.generation import Generation
from nemo_trt.engines.paged_rows import PagedRows
from nemo_trt.engines.rows import Rows, common_prefix
from nemo_trt.engines.session import Session
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import (
    CapacityError,
    FaultError,
    NemoTrtError,
    QueueFullError,
    RequestError,
)

from .drafts import DraftSource, PromptLookup
from .live import Live
from .page_slots import PageSlots
from .request import Request, Usage
from .slots import MIN_COPY, Slots


class Admission:
    """The requests of a session: those that wait, and those that have a row.

    Args:
        session, tokenizer, max_queue, clock: see `Scheduler`.

    Attributes:
        queue: who waits, in the order of arrival.
        running: who has a row, by row.
        changes: how often a row was given to a request, or a request gave up its place.
    """

    def __init__(
        self,
        session: Session,
        rows: Rows,
        tokenizer: Tokenizer | None,
        *,
        max_queue: int,
        clock: Callable[[], float],
    ) -> None:
        self._session, self._tokenizer = session, tokenizer
        self._rows, self._max_queue, self._clock = rows, max_queue, clock
        self.slots: Slots | PageSlots = (
            PageSlots(rows, session.max_batch)
            if isinstance(rows, PagedRows)
            else Slots(rows, session.max_batch)
        )
        self.queue: deque[Live] = deque()
        self.running: dict[int, Live] = {}
        self.changes = 0
        self._next_id = 0
        self._sound: Sequence[int] = ()  # the last prompt whose tokens were looked at

    def has_row(self, live: Live) -> bool:
        """Whether a request has its row still."""
        return self.running.get(live.row) is live

    def is_live(self, live: Live) -> bool:
        """Whether a request has not ended."""
        return self.has_row(live) or (live.row < 0 and live in self.queue)

    def find(self, condition: Callable[[Live], bool]) -> list[Live]:
        """The requests, waiting or running, that meet a condition."""
        return [live for live in (*self.queue, *self.running.values()) if condition(live)]

    def submit(self, request: Request) -> int:
        """Queue a request; see `Scheduler.submit`.

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
        live = Live(
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
        self.queue.append(live)
        return live.request_id

    def _require_place(self, request: Request) -> None:
        """A group that has a place, in the queue or in a row, has one for all of its requests."""
        served = {live.group for live in self.running.values()}
        waiting = {live.group for live in self.queue} - served
        if (
            request.group in served | waiting
            or len(waiting) < self._max_queue + self.slots.num_free
        ):
            return
        raise QueueFullError(f"{len(waiting)} requests are waiting already. Try later.")

    def _next(self) -> Live:
        """Of those that wait, whose group has the fewest rows; of equals, the first."""
        rows = Counter(live.group for live in self.running.values())
        return min(self.queue, key=lambda waiting: rows[waiting.group])

    @property
    def may_admit(self) -> bool:
        """Whether somebody waits and a row is free."""
        return bool(self.queue and self.slots.num_free)

    def admit(self) -> None:
        """Give rows to those that wait, while there are any."""
        while self.may_admit and self._give_row(self._next()):
            pass

    def _give_row(self, live: Live) -> bool:
        """Whether there was room for a request: else nobody passes it by."""
        # Where a prompt is scored, what the cache holds has no logits any more: it is others'.
        place = self.slots.take(live.prompt, shared=not live.scoring)
        if place is None:
            return False
        self.changes += 1
        self.queue.remove(live)
        live.row, length = place
        live.leader = None if live.scoring else self._leader(live, length)
        if not live.usage.preemptions:
            live.usage.cached_tokens = length
            live.usage.queue_s = self._clock() - live.arrival
        live.pending = live.prompt[length:]
        self.running[live.row] = live
        return True

    def gives_way(self, work: Mapping[int, Sequence[int]]) -> int:
        """The row that is to be emptied when there is no room for a step's tokens: with pages the
        youngest request's, so that the oldest one always goes on."""
        if self.slots.preempts and len(self.running) > 1:
            return max(self.running, key=lambda row: self.running[row].request_id)
        return self._rows.longest(work)

    def preempt(self, live: Live) -> bool:
        """Put a request back in front of the queue: its tokens are run again when there is room.
        False where that would not help, because it is alone or its slot has room of its own."""
        if not self.slots.preempts or len(self.running) == 1:
            return False
        live.prompt = [*self._rows.held(live.row), *live.pending]
        live.pending, live.decoding, live.leader = [], False, None
        self.release(live)
        live.row = -1
        self.queue.appendleft(live)
        live.usage.preemptions += 1
        return True

    def _leader(self, live: Live, length: int) -> Live | None:
        """Who runs more of the same beginning than any row holds yet, worth waiting for."""
        found, most = None, length + MIN_COPY - 1
        for other in self.running.values():
            if not other.decoding and not other.leader:
                shared = common_prefix(other.prompt, live.prompt)
                if shared > most:
                    found, most = other, shared
        return found

    def may_run(self, live: Live) -> bool:
        """Whether a request may run its prompt: the beginning that another one runs is here."""
        leader = live.leader
        if leader is None:
            return True
        if self.running.get(leader.row) is leader and not leader.decoding:
            return False
        live.leader = None
        length = self.slots.share(live.row, live.prompt)
        if not live.usage.preemptions:
            live.usage.cached_tokens = length
        live.pending = live.prompt[length:]
        return True

    def release(self, live: Live, error: NemoTrtError | None = None) -> None:
        """A request gives its place up, in the queue or in its row."""
        self.changes += 1
        if live.row < 0:
            self.queue.remove(live)
            return
        del self.running[live.row]
        harmless = isinstance(error, RequestError | FaultError | CapacityError)
        if harmless:
            self._rows.rewind(live.row)
        # With another error the cache may hold what is not finite, which outlives a rewind.
        tainted = error is not None and not harmless
        self.slots.give_back(live.row, tainted=tainted)
