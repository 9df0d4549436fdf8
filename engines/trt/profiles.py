"""The optimisation profiles of an engine: one for prefill, one for each number of decode rows."""

from dataclasses import dataclass

from nemo_trt import contract
from nemo_trt.passes.add_candidates import TEMPERATURES

from .attention.place import LENGTHS
from .engine_record import BuildOptions

PREFILL = "prefill"
Shapes = dict[str, tuple[int, ...]]


def buckets(max_batch: int) -> tuple[int, ...]:
    """Numbers of rows that decode profiles are made for: 1, 2, 4, ... and `max_batch`."""
    powers = (1 << index for index in range(max_batch.bit_length()))
    return tuple(sorted({*(power for power in powers if power < max_batch), max_batch}))


def decode_name(rows: int) -> str:
    """The name of the decode profile of exactly `rows` rows."""
    return f"decode-{rows}"


def is_decode(profile: str) -> bool:
    """Whether a profile's name is that of a decode profile."""
    return profile != PREFILL


def decode_names(max_batch: int) -> tuple[str, ...]:
    """The names of all decode profiles, in the order of a plan."""
    return tuple(decode_name(rows) for rows in buckets(max_batch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The shapes that a profile takes; those of caches follow from its rows.

    Attributes:
        rows: of every input; a profile has one number of them. With a range of rows the kernel
            that writes the cache would get a grid over all of it.
        least, best, most: input -> shape, of every input that is no cache.
    """

    rows: int
    least: Shapes
    best: Shapes
    most: Shapes


def profile_named(name: str, options: BuildOptions) -> Profile:
    """Prefill: one row, 1 to chunk tokens. Decode: a fixed number of rows, one token."""
    if name == PREFILL:
        chunk = options.prefill_chunk
        return Profile(
            rows=1,
            least=step_inputs(1, 1, 1),
            best=step_inputs(1, chunk, 1),
            most=step_inputs(1, chunk, min(chunk, options.max_logits)),
        )
    rows = int(name.removeprefix(decode_name(0)[:-1]))
    one = step_inputs(rows, 1, 1)
    return Profile(rows=rows, least=one, best=one, most=one)


def step_inputs(batch: int, new_tokens: int, num_logits: int) -> Shapes:
    """The shape of every input that is no cache."""
    return {
        contract.INPUT_IDS: (batch, new_tokens),
        contract.WRITE_INDICES: (batch,),
        contract.LOGIT_INDICES: (batch, num_logits),
        LENGTHS: (batch,),
        TEMPERATURES: (batch,),
    }
