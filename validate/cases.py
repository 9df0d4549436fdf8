"""The cases: how each drives a session, and which logits it says belong to which tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from nemo_trt.defaults import MAX_ROWS
from nemo_trt.engines.rows import Rows
from nemo_trt.engines.runner import Runner
from nemo_trt.engines.session import CacheBlock, Logits, Session

from .context import Context
from .sequences import (
    DECODE_STEPS,
    LONG_STEPS,
    Sequences,
    TokenSequence,
)

CHUNK = 7
POISON = 1e4  # finite in every compute precision
_JOINT_STEPS, _PART_STEPS = 4, 2
_RUNNER_CHUNK = 9
_LEAST_SPLIT = 12


@dataclass(frozen=True, slots=True)
class Observation:
    """Logits of the engine for the tokens `first` to `first + n` of a sequence, (n, V)."""

    sequence: TokenSequence
    first: int
    logits: Logits


def whole_prefill(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """Each text in one step."""
    for sequence in sequences.texts:
        yield Observation(sequence, 0, _run(session, sequence))


def long_prefill(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """A text longer than one prefill step takes, few of its logits in no order and one of them
    twice; then one token a step."""
    sequence = sequences.long
    split = len(sequence.tokens) - LONG_STEPS
    ascending = [i for i in sequence.wanted or range(split) if i < split]
    wanted = [*ascending[1::2], *reversed(ascending[::2]), ascending[len(ascending) // 2]]
    session.bind(split)
    tokens = np.array([sequence.tokens[:split]], np.int64)
    logits = session.step(tokens, np.zeros(1, np.int64), np.array([wanted]))[0].copy()
    for row, index in enumerate(wanted):
        yield Observation(sequence, index, logits[row : row + 1])
    for index in range(split, len(sequence.tokens)):
        yield Observation(sequence, index, _run(session, sequence, index, index + 1))


def chunked_prefill(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """A text in steps of a few tokens."""
    sequence = max(sequences.texts, key=lambda one: len(one.tokens))
    for start in range(0, len(sequence.tokens), CHUNK):
        yield Observation(sequence, start, _run(session, sequence, start, start + CHUNK))


def stepwise_decode(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """A prefill, then one token a step through the cache."""
    sequence = sequences.texts[0]
    split = max(1, len(sequence.tokens) - DECODE_STEPS)
    _run(session, sequence, 0, split)
    for index in range(split, len(sequence.tokens)):
        yield Observation(sequence, index, _run(session, sequence, index, index + 1))


def ragged_batch(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """As many rows as there are, up to eight, two of them equally long: a padded prefill with a few
    logits a row in no order, steps of all rows, then steps of those but the first, and of the last.
    """
    rows, splits = _ragged(sequences.texts, min(session.max_batch, MAX_ROWS))
    longest = max(splits)
    padded = np.zeros((len(rows), longest), np.int64)
    for row, (sequence, split) in enumerate(zip(rows, splits, strict=True)):
        padded[row, :split] = sequence.tokens[:split]
    wanted = np.array([[split - 1, 0, split // 2, split - 1, split // 3] for split in splits])
    session.bind(longest + _JOINT_STEPS + _PART_STEPS)
    logits = session.step(padded, np.zeros(len(rows), np.int64), wanted).copy()
    for row, sequence in enumerate(rows):
        for place, index in enumerate(wanted[row]):
            yield Observation(sequence, int(index), logits[row, place : place + 1])
    where = np.array(splits)
    parts = [(0, _JOINT_STEPS)]
    if len(rows) > 1:
        parts += [(1, _PART_STEPS), (len(rows) - 1, 1)]
    for first_row, steps in parts:
        for _ in range(steps):
            some = range(first_row, len(rows))
            tokens = np.array([[rows[row].tokens[where[row]]] for row in some])
            indices = np.zeros((len(tokens), 1), np.int64)
            logits = session.step(tokens, where[first_row:], indices, first_row).copy()
            for row in some:
                yield Observation(rows[row], int(where[row]), logits[row - first_row])
            where[first_row:] += 1


def poisoned_tail(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """A cache whose unused part holds large numbers."""
    sequence = sequences.texts[1 % len(sequences.texts)]
    session.bind(len(sequence.tokens))
    config = session.config
    shape = (config.num_kv_heads, session.capacity, config.head_dim)
    poison: CacheBlock = np.full(shape, POISON, np.float32)
    for layer in range(config.num_layers):
        for kind in ("key", "value"):
            session.write_cache(layer, kind, 0, 0, poison)
    half = len(sequence.tokens) // 2
    yield Observation(sequence, 0, _run(session, sequence, 0, half))
    yield Observation(sequence, half, _run(session, sequence, half))


def reused_slot(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """A row that held other, longer tokens and was rewound to nothing."""
    ordered = sorted(sequences.texts, key=lambda one: len(one.tokens))
    _run(session, ordered[-1])
    yield Observation(ordered[0], 0, _run(session, ordered[0]))


def rewound_rows(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """`Rows`: other tokens written behind half a text and rewound, as drafts are; and a row into
    which the beginning of another is copied, as shared prefixes are."""
    text = max(sequences.texts, key=lambda one: len(one.tokens))
    other = sequences.texts[0] if text is not sequences.texts[0] else sequences.texts[-1]
    half, count = len(text.tokens) // 2, min(6, len(text.tokens) // 2 - 1)
    rows = Rows(session)
    last = session.max_batch - 1

    def judged(row: int, start: int, stop: int) -> Iterator[Observation]:
        tokens = text.tokens[start:stop]
        for _, logits in rows.append({row: tokens}, num_logits=len(tokens)):
            yield Observation(text, start, logits.copy())

    def write(row: int, tokens: tuple[int, ...]) -> None:
        for _ in rows.append({row: tokens}):
            pass

    write(0, text.tokens[:half])
    write(0, other.tokens[:DECODE_STEPS])
    rows.rewind(0, half)
    yield from judged(0, half, half + count)
    if last:
        shared = half - 2
        write(last, other.tokens[: half + count + 2])
        rows.copy(0, last, shared)
        yield from judged(last, shared, half + count)
    yield from judged(0, half + count, half + count + 1)  # unharmed by the copy


def runner_rows(session: Session, sequences: Sequences) -> Iterator[Observation]:
    """`Runner`: rows given in another order than the cache's, prefilled in chunks with one logit a
    row, decoded while others rest, then all together."""
    texts, splits = _ragged(sequences.texts, min(session.max_batch, 4))
    rows = [*range(1, len(texts), 2), *range(0, len(texts), 2)]
    runner = Runner(session)
    where = dict(zip(rows, splits, strict=True))
    text_of = dict(zip(rows, texts, strict=True))
    prompts = {row: text_of[row].tokens[: where[row]] for row in rows}
    logits = runner.prefill(prompts, chunk=_RUNNER_CHUNK)
    for index, row in enumerate(rows):
        yield Observation(text_of[row], where[row] - 1, logits[index : index + 1])
    some = rows[:1] if len(rows) < 3 else [max(rows), min(rows)]
    for active in (some, some, rows, rows):
        logits = runner.decode({row: text_of[row].tokens[where[row]] for row in active})
        for index, row in enumerate(active):
            yield Observation(text_of[row], where[row], logits[index : index + 1])
            where[row] += 1


def growing_cache(
    session: Session, sequence: TokenSequence, context: Context
) -> Iterator[Observation]:
    """Tokens across the edge at which a cache grows, whose content must stay. It runs first, before
    a case that needs more."""
    session.bind(sequence.start)
    _write_context(session, context, sequence.start)
    yield from _through(session, sequence)


def long_position(
    session: Session, far: tuple[TokenSequence, ...], context: Context
) -> Iterator[Observation]:
    """Tokens at several depths of the context, behind keys and values that are written there.

    The deepest comes first, so that what is written serves for all: each depth overwrites only what
    lies behind the next one.
    """
    deepest = far[0]
    session.bind(deepest.start + len(deepest.tokens))
    _write_context(session, context, deepest.start)
    for sequence in far:
        yield from _through(session, sequence)


CASES: dict[str, Callable[[Session, Sequences], Iterator[Observation]]] = {
    "whole prefill": whole_prefill,
    "long prefill": long_prefill,
    "chunked prefill": chunked_prefill,
    "stepwise decode": stepwise_decode,
    "ragged batch": ragged_batch,
    "poisoned tail": poisoned_tail,
    "reused slot": reused_slot,
    "rewound rows": rewound_rows,
    "runner": runner_rows,
}
GROWING_CACHE, LONG_POSITION = "growing cache", "long position"
NUM_CASES = len(CASES) + 2


def every_case(
    session: Session, sequences: Sequences, context: Context
) -> Iterator[tuple[str, Iterator[Observation]]]:
    """Every case by name, in the order in which they must run; whole prefill first."""
    for name, case in CASES.items():
        yield name, case(session, sequences)
        if case is whole_prefill:
            yield GROWING_CACHE, growing_cache(session, sequences.edge, context)
    yield LONG_POSITION, long_position(session, sequences.far, context)


def _write_context(session: Session, context: Context, length: int) -> None:
    for layer in range(session.config.num_layers):
        for kind in ("key", "value"):
            session.write_cache(layer, kind, 0, 0, context.repeated(layer, kind, length))


def _through(session: Session, sequence: TokenSequence) -> Iterator[Observation]:
    """Half of the tokens in one step, the rest one by one."""
    half = len(sequence.tokens) // 2
    yield Observation(sequence, 0, _run(session, sequence, 0, half))
    for index in range(half, len(sequence.tokens)):
        yield Observation(sequence, index, _run(session, sequence, index, index + 1))


def _ragged(texts: tuple[TokenSequence, ...], count: int) -> tuple[list[TokenSequence], list[int]]:
    """Texts of different lengths in no order, and how many tokens of each are prefilled: two alike,
    each so that what is left is enough for the steps behind it."""
    ordered = sorted(texts, key=lambda one: len(one.tokens))
    chosen = [ordered[index * len(ordered) // count] for index in range(min(count, len(ordered)))]
    chosen = [*chosen[1::2], *chosen[::2]]
    left = _JOINT_STEPS + _PART_STEPS + 1
    splits = [
        max(1, min(len(one.tokens) - left, _LEAST_SPLIT + 3 * index))
        for index, one in enumerate(chosen)
    ]
    if len(splits) > 1:
        splits[0] = splits[-1] = min(splits[0], splits[-1])
    return chosen, splits


def _run(
    session: Session, sequence: TokenSequence, start: int = 0, stop: int | None = None
) -> Logits:
    """Run tokens `start` to `stop` of a sequence in row 0; logits of each, (n, V), copied."""
    tokens = np.array([sequence.tokens[start:stop]], np.int64)
    where = sequence.start + start
    session.bind(where + tokens.shape[1])
    every = np.arange(tokens.shape[1])[None]
    logits: Logits = session.step(tokens, np.array([where]), every)[0].copy()
    return logits
