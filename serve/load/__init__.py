"""Load for any server that speaks OpenAI's API, and what it answered with: needs extra `load`."""

from .lengths import Lengths, parse_lengths
from .options import LoadOptions
from .record import Record
from .run import LoadResult, run_load
from .summary import Summary, summarise

__all__ = [
    "Lengths",
    "LoadOptions",
    "LoadResult",
    "Record",
    "Summary",
    "parse_lengths",
    "run_load",
    "summarise",
]
