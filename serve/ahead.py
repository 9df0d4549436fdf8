"""The decode step behind the one that runs, prepared but for its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_trt.engines.draws import Draws, Settings
from nemo_trt.engines.row_steps import PreparedStep
from nemo_trt.engines.rows import Rows
from nemo_trt.engines.step_result import At
from nemo_trt.errors import NemoTrtError

from .admission import Admission
from .live import Flight, Live, Turn


@dataclass(slots=True)
class Ahead:
    """What is left to do between two decode steps is to draw tokens and to launch.

    Attributes:
        due: who gets a token of the step that runs.
        at, draws: where its logits are and what it is drawn with, for each of `due`.
        lives: by row, who runs its token in the next step: not those for whom it is the last.
        sources: where in `due` these stand.
        step: the next step.
        changes: see `Admission`; with another number this is void.
    """

    due: list[Turn]
    at: list[At]
    draws: Draws
    lives: dict[int, Live]
    sources: list[int]
    step: PreparedStep
    changes: int

    def launched(self, tokens: Sequence[int]) -> Flight | None:
        """Launch the step with the tokens of `due`; None if all of them end their answers. A row
        whose answer ends runs in vain, beside others. The flight has the error of its launch.
        """
        own = [tokens[source] for source in self.sources]
        lives = self.lives.values()
        if all(live.generation.ends_with(at) for live, at in zip(lives, own, strict=True)):
            return None
        work = {row: [token] for row, token in zip(self.lives, own, strict=True)}
        flight = Flight(work, self.lives)
        try:
            flight.step = self.step.launch(own)
        except NemoTrtError as error:
            flight.error = error
        return flight


def prepared(
    flight: Flight, places: Admission, rows: Rows, max_seq_len: int, before: Ahead | None
) -> Ahead | None:
    """The step behind a flight, or None where more than tokens will have to be looked at.

    Args:
        before: the last one, whose settings may be these.
    """
    if (
        flight.step is None
        or any(len(tokens) != 1 for tokens in flight.work.values())
        or not all(live.decoding for live in places.running.values())
    ):
        return None
    due = [Turn(live, []) for live in flight.lives.values() if places.has_row(live)]
    if len(due) < len(places.running):  # others have their turn behind it
        return None
    lives: dict[int, Live] = {}
    sources = []
    for index, one in enumerate(due):
        live, generation = one.live, one.live.generation
        after = len(rows.held(live.row)) + 2  # this step's token, and the one that is due
        if after < max_seq_len and generation.count + 1 < live.request.params.max_tokens:
            lives[live.row] = live
            sources.append(index)
    if not lives:
        return None
    samplers = [one.live.generation.sampler for one in due]
    try:
        masks = [one.live.generation.mask() for one in due]
    except Exception:  # it is met again where the row is told of it
        return None
    degrees = {row: live.request.params.temperature for row, live in lives.items()}
    step = rows.prepare(list(lives), flight.step, degrees)
    if step is None:
        return None
    same = before is not None and before.draws.samplers == samplers
    settings: Settings | None = before.draws.settings if before is not None and same else None
    return Ahead(
        due=due,
        at=[flight.step.at(one.live.row, 0) for one in due],
        draws=Draws(samplers, masks, settings=settings),
        lives=lives,
        sources=sources,
        step=step,
        changes=places.changes,
    )
