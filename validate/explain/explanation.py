"""What an explanation found, as data and in sentences."""

from dataclasses import dataclass, field
from itertools import groupby

from .findings import PlaceError
from .repro import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What each place of the graph computed of one sequence, beside the reference.

    Attributes:
        sequence: name of the sequence that was run.
        start: position of its first token.
        tokens: number of its tokens.
        runner: what ran the graph's pieces, in words.
        places: every place, fed with the reference's values, in the order of computation.
        free: relative L2 of each layer's output (worst position) when the layers feed each other.
        worst: the first place that is off, or else the one that is furthest, as it can be written.
    """

    sequence: str
    start: int
    tokens: int
    runner: str
    places: tuple[PlaceError, ...]
    free: tuple[float, ...]
    worst: Place = field(repr=False)

    @property
    def found(self) -> tuple[PlaceError, ...]:
        """The places that are off, the first first."""
        return tuple(one for one in self.places if one.words)

    def sentences(self) -> list[str]:
        """What was found: a place that is off in the same way in many layers stands once."""
        if not self.found:
            worst = max(one.position_error for one in self.places)
            limit = max(one.limit for one in self.places if one.part == 0)
            if not self.free[0] <= limit:  # the first layer's input is the reference's
                return [
                    f"Every place of {self.sequence} is sound alone (relative L2 at most "
                    f"{worst:.1e}), but layer 0 as a whole is {self.free[0]:.1e} off, limit "
                    f"{limit:.0e}: look at what {self.runner} fuses."
                ]
            return [
                f"The graph is sound at every place of {self.sequence}: relative L2 at most "
                f"{worst:.1e}. If a case fails all the same, look at what drives the graph."
            ]
        return [
            _sentence(list(same)) for _, same in groupby(self._ordered(), lambda one: one.place)
        ]

    def _ordered(self) -> list[PlaceError]:
        """The found places, those of one name together, by where the name is met first."""
        first = {one.place: index for index, one in reversed(list(enumerate(self.found)))}
        return sorted(self.found, key=lambda one: first[one.place])


def _sentence(same: list[PlaceError]) -> str:
    first = same[0]
    text = f"{first.where}: {first.words}"
    if len(same) == 2:
        text += f"; also in layer {same[1].part}"
    elif len(same) > 2:
        text += f"; also in {len(same) - 1} more layers, up to layer {same[-1].part}"
    return text + "."
