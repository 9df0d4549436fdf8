"""The cases: how each drives a session, and which logits it says belong to which tokens."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16
from nemo_trt.engines.session import CacheBlock, Logits, Session

DECODE_STEPS = 12
CHUNK = 7
POISON = 1e4  # finite in every compute precision
NUM_ROWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """Tokens whose logits are compared.

    Attributes:
        name: unique in a run.
        tokens: the tokens that are computed.
        start: position of the first one. Before it stands a `Context`, repeated.
    """

    name: str
    tokens: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """Logits of the engine for the tokens `first` to `first + n` of a sequence, (n, V)."""

    sequence: TokenSequence
    first: int
    logits: Logits


@dataclass(frozen=True, slots=True)
class Context:
    """Keys and values of a short text, from which those of a long context are made.

    Attributes:
        blocks: (layer, "key" or "value") -> (K, n, D) float32, keys rotated to 0 to n - 1.
        rope_theta: with which they were rotated.
    """

    blocks: Mapping[tuple[int, str], NDArray[np.float32]]
    rope_theta: float

    def repeated(self, layer: int, kind: str, length: int) -> NDArray[np.float32]:
        """(K, length, D): the text again and again, its keys turned to where they now stand.

        Real keys and values keep the model where it is stable; random ones would make it amplify
        rounding, and the case would say more of the model than of the engine. Exact in BF16.
        """
        block = self.blocks[layer, kind]
        heads, tokens, width = block.shape
        copies = -(-length // tokens)
        if kind == "value":
            rounded = bfloat16.to_float32(bfloat16.from_float32(block))
            return np.tile(rounded, (1, copies, 1))[:, :length]
        shifts = np.arange(copies) * tokens
        frequencies = self.rope_theta ** -(np.arange(0, width, 2) / width)
        angles = (shifts[:, None] * frequencies)[:, None]  # (copies, 1, D/2): one a copy
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = block[:, None, :, : width // 2], block[:, None, :, width // 2 :]
        turned = (first * cos - second * sin, second * cos + first * sin)
        whole = np.concatenate(turned, axis=-1).reshape(heads, -1, width)[:, :length]
        return bfloat16.to_float32(bfloat16.from_float32(whole))


def whole_prefill(session: Session, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """Each sequence in one step."""
    for sequence in sequences:
        yield Observation(sequence, 0, _run(session, sequence))


def chunked_prefill(session: Session, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """A sequence in steps of a few tokens."""
    sequence = max(sequences, key=lambda one: len(one.tokens))
    for start in range(0, len(sequence.tokens), CHUNK):
        yield Observation(sequence, start, _run(session, sequence, start, start + CHUNK))


def stepwise_decode(session: Session, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """A prefill, then one token a step through the cache."""
    sequence = sequences[0]
    split = max(1, len(sequence.tokens) - DECODE_STEPS)
    _run(session, sequence, 0, split)
    for index in range(split, len(sequence.tokens)):
        yield Observation(sequence, index, _run(session, sequence, index, index + 1))


def ragged_batch(session: Session, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """Rows of different lengths: one padded prefill, then steps with different write indices."""
    rows = sorted(sequences, key=lambda one: len(one.tokens))[:: max(1, len(sequences) // NUM_ROWS)]
    rows = rows[: session.max_batch]
    splits = [max(1, len(row.tokens) - DECODE_STEPS) for row in rows]
    longest = max(splits)
    padded = np.zeros((len(rows), longest), np.int64)
    for row, (sequence, split) in enumerate(zip(rows, splits, strict=True)):
        padded[row, :split] = sequence.tokens[:split]
    every = np.tile(np.arange(longest), (len(rows), 1))
    session.bind(longest + DECODE_STEPS)
    logits = session.step(padded, np.zeros(len(rows), np.int64), every).copy()
    for row, (sequence, split) in enumerate(zip(rows, splits, strict=True)):
        yield Observation(sequence, 0, logits[row, :split])
    for step in range(min(len(r.tokens) - s for r, s in zip(rows, splits, strict=True))):
        where = np.array(splits) + step
        tokens = np.array([[r.tokens[w]] for r, w in zip(rows, where, strict=True)])
        logits = session.step(tokens, where, np.zeros((len(rows), 1), np.int64)).copy()
        for row, sequence in enumerate(rows):
            yield Observation(sequence, int(where[row]), logits[row])


def poisoned_tail(session: Session, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """A cache whose unused part holds large numbers."""
    sequence = sequences[1 % len(sequences)]
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


def reused_slot(session: Session, sequences: list[TokenSequence]) -> Iterator[Observation]:
    """A row that held other, longer tokens and was rewound to nothing."""
    ordered = sorted(sequences, key=lambda one: len(one.tokens))
    _run(session, ordered[-1])
    yield Observation(ordered[0], 0, _run(session, ordered[0]))


def long_position(
    session: Session, sequence: TokenSequence, context: Context
) -> Iterator[Observation]:
    """Tokens near the context limit, behind keys and values that are written there."""
    session.bind(sequence.start + len(sequence.tokens))
    for layer in range(session.config.num_layers):
        for kind in ("key", "value"):
            session.write_cache(layer, kind, 0, 0, context.repeated(layer, kind, sequence.start))
    half = len(sequence.tokens) // 2
    yield Observation(sequence, 0, _run(session, sequence, 0, half))
    for index in range(half, len(sequence.tokens)):
        yield Observation(sequence, index, _run(session, sequence, index, index + 1))


CASES: dict[str, Callable[[Session, list[TokenSequence]], Iterator[Observation]]] = {
    "whole prefill": whole_prefill,
    "chunked prefill": chunked_prefill,
    "stepwise decode": stepwise_decode,
    "ragged batch": ragged_batch,
    "poisoned tail": poisoned_tail,
    "reused slot": reused_slot,
}
LONG_POSITION = "long position"


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
