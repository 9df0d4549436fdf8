"""Tokens of a step's rows: drawn, taken, and told while the next step runs."""

import logging

from nemo_trt.engines.draws import Draws
from nemo_trt.engines.rows import Rows
from nemo_trt.engines.sampling import Sampled
from nemo_trt.engines.session import Session
from nemo_trt.engines.step_result import Samples
from nemo_trt.errors import FaultError, NemoTrtError

from .admission import Admission
from .live import Flight, Turn
from .request import Ended, Output

_LOG = logging.getLogger("nemo_trt.serve")


class Turns:
    """What requests get of a step that has ended. One request's fault ends that request alone.

    Args:
        session, rows, places: the scheduler's.
    """

    def __init__(self, session: Session, rows: Rows, places: Admission) -> None:
        self._session, self._rows, self._places = session, rows, places

    def take(self, due: list[Turn], flight: Flight, samples: Samples | None = None) -> None:
        """Take the token that was due, and one behind each draft that turned out right.

        Args:
            samples: the first ones, where they have been drawn.
        """
        position = 0
        while due:
            asked = due
            if samples is None:
                asked, samples = self._drawn(due, flight, position)
            due = []
            for index, one in enumerate(asked):
                try:
                    sampled = samples.take(index)
                except Exception as error:
                    self._fail(one, error)
                    continue
                if self._goes_on(one, sampled, position):
                    due.append(one)
            samples, position = None, position + 1

    def _drawn(self, due: list[Turn], flight: Flight, position: int) -> tuple[list[Turn], Samples]:
        """Draw behind each turn's token, or behind its `position`-th draft; who may have one."""
        step = flight.step
        assert step is not None and step.result is not None
        asked: list[Turn] = []
        masks = []
        for one in due:
            try:
                masks.append(one.live.generation.mask())
                asked.append(one)
            except Exception as error:
                self._fail(one, error)
        rows = [one.live.row for one in asked]
        at = [
            step.at(row, step.num_logits(row) - 1 - len(one.drafts) + position)
            for row, one in zip(rows, asked, strict=True)
        ]
        samplers = [one.live.generation.sampler for one in asked]
        samples = Samples(step.result, at, Draws(samplers, masks))
        learn(asked, samples)
        return asked, samples

    def _goes_on(self, one: Turn, sampled: Sampled, position: int) -> bool:
        """Take a token; whether a draft stands behind it that was right."""
        live, token = one.live, sampled.token_id
        held = len(self._rows.held(live.row)) - len(one.drafts) + position
        taken = live.generation.take(sampled, last=held + 1 >= self._session.max_seq_len)
        ends = taken.reason is not None
        right = position < len(one.drafts) and token == one.drafts[position]
        one.tokens.append((taken, right))
        if right and not ends and live.generation.constrained:  # the next mask depends on it
            try:
                ends = self._tell_token(one, one.outputs)
            except Exception as error:
                self._fail(one, error)
                return False
        if right and not ends:
            return True
        live.pending = [token]
        self._rows.rewind(live.row, held + right)
        if ends and self._places.has_row(live):
            self._places.release(live)
        return False

    def _fail(self, one: Turn, error: Exception) -> None:
        one.error = as_error(error)
        self._places.release(one.live, one.error)

    def tell(self, one: Turn, outputs: list[Output]) -> None:
        """Make outputs of what was taken, in order, up to the end of the answer."""
        live = one.live
        live.usage.drafted_tokens += len(one.drafts)
        outputs.extend(one.outputs)
        try:
            while one.tokens:
                if self._tell_token(one, outputs):
                    return
            if live.generation.constrained and self._places.has_row(live):
                live.generation.mask()  # for the next token, while a step runs
        except Exception as error:
            one.error = as_error(error)
            if self._places.is_live(live):
                self._places.release(live, one.error)
        if one.error is not None:
            ended = Ended(reason="error", usage=live.usage, error=one.error)
            outputs.append(Output(request_id=live.request_id, event=None, ended=ended))

    def _tell_token(self, one: Turn, outputs: list[Output]) -> bool:
        """Make the output of the first token that is left; whether the answer ends with it."""
        live, usage = one.live, one.live.usage
        taken, right = one.tokens.pop(0)
        event = live.generation.tell(taken)
        usage.completion_tokens += 1
        usage.accepted_tokens += right
        ended = None
        if event.finish_reason:
            ended = Ended(reason=event.finish_reason, usage=usage)
            if self._places.is_live(live):
                self._places.release(live)
        outputs.append(Output(request_id=live.request_id, event=event, ended=ended))
        return ended is not None


def learn(due: list[Turn], samples: Samples) -> None:
    """What is drafted from goes on with the tokens that were drawn."""
    for index, one in enumerate(due):
        if one.live.lookup and index not in samples.errors:
            one.live.lookup.push(samples.tokens[index])


def as_error(error: Exception) -> NemoTrtError:
    """What a request is told of an error: any but our own is a fault of nemo-trt, and logged."""
    if isinstance(error, NemoTrtError):
        return error
    _LOG.error("a request met a fault", exc_info=error)
    fault = FaultError(f"The request met a fault of nemo-trt: {type(error).__name__}: {error}")
    fault.__cause__ = error
    return fault
