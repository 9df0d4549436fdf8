"""The token sequences of a validation: texts, one long text, and tokens far out in the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nemo_trt.engines.session import Session
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import RequestError

from .texts import HELD_OUT

Origin = Literal["built-in", "given", "random"]

MIN_PROMPT_TOKENS = 10
MAX_PROMPT_TOKENS = 64
DECODE_STEPS = 12
LONG_STEPS = 8
"""Tokens of the long text that are decoded one by one behind its prefill."""
EDGE = 256
"""Tokens by which a cache grows; kernels and masks have edges there too."""
_BEYOND_CHUNK = 44
_FAR_TOKENS, _DEPTH_TOKENS = 8, 4
_DEPTHS = (300, 2000)
_NUM_RANDOM = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """Tokens whose logits are compared.

    Attributes:
        name: unique in a run.
        tokens: the tokens that are computed.
        start: position of the first one. Before it stands a `Context`, repeated.
        wanted: indices of the tokens whose logits the reference keeps, ascending; None for all.
    """

    name: str
    tokens: tuple[int, ...]
    start: int = 0
    wanted: tuple[int, ...] | None = None

    def rows(self, first: int, count: int) -> list[int]:
        """Where the reference keeps the logits of the tokens `first` to `first + count`."""
        indices = range(first, first + count)
        return list(indices) if self.wanted is None else [self.wanted.index(i) for i in indices]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Everything that a validation computes.

    Attributes:
        texts: short ones, from position 0.
        edge: a few tokens that begin just before the cache's first edge.
        long: longer than one prefill step of the session takes.
        far: a few tokens at several depths of the context, the deepest first.
        origin: of the texts.
    """

    texts: tuple[TokenSequence, ...]
    edge: TokenSequence
    long: TokenSequence
    far: tuple[TokenSequence, ...]
    origin: Origin

    @property
    def every(self) -> tuple[TokenSequence, ...]:
        """All of them, a text first."""
        return (*self.texts, self.long, *self.far, self.edge)


def make_sequences(
    session: Session, tokenizer: Tokenizer | None, prompts: Sequence[str] | None = None
) -> Sequences:
    """The sequences that fit a session.

    Without a tokenizer the tokens are seeded random numbers.

    Raises:
        RequestError: a prompt is too short to say anything, or no prompt was given.
    """
    end = min(session.max_seq_len, session.config.max_position_embeddings)
    chunk = session.prefill_chunk or EDGE
    num_long = min(chunk + _BEYOND_CHUNK, end)
    if tokenizer is None:
        rng = np.random.default_rng(0)
        vocab_size = session.config.vocab_size
        lengths = range(20, 20 + 9 * _NUM_RANDOM, 9)
        every = [rng.integers(0, vocab_size, length).tolist() for length in lengths]
        joined = rng.integers(0, vocab_size, num_long).tolist()
    else:
        texts = list(prompts or HELD_OUT)
        every = [tokenizer.encode(prompt, bos=True) for prompt in texts]
        joined = tokenizer.encode("\n\n".join(texts[1:] + texts[:1]), bos=True)
    for index, tokens in enumerate(every):
        if len(tokens) < MIN_PROMPT_TOKENS:
            raise RequestError(
                f"Prompt {index + 1} must have at least {MIN_PROMPT_TOKENS} tokens, "
                f"got {len(tokens)}."
            )
    limit = min(MAX_PROMPT_TOKENS, session.max_seq_len - DECODE_STEPS)
    long = (joined * -(-num_long // len(joined)))[:num_long]
    return Sequences(
        texts=tuple(
            TokenSequence(name=f"text {index + 1}", tokens=tuple(tokens[:limit]))
            for index, tokens in enumerate(every)
        ),
        edge=_edge(every[0], end),
        long=TokenSequence(name="long", tokens=tuple(long), wanted=_edges(num_long, chunk)),
        far=_far(every[0], end),
        origin="random" if tokenizer is None else "given" if prompts else "built-in",
    )


def _edge(tokens: Sequence[int], end: int) -> TokenSequence:
    some = tuple(tokens[:_FAR_TOKENS])
    return TokenSequence(name="edge", tokens=some, start=min(EDGE - 4, end - len(some)))


def _edges(length: int, chunk: int) -> tuple[int, ...]:
    """Indices of the long text's tokens where something may break: ends, 256, the chunk's edge."""
    split = length - LONG_STEPS
    found = {0, 1, EDGE // 2, split - 2, *range(split - 1, length)}
    found |= {EDGE - 1, EDGE, EDGE + 1, chunk - 1, chunk, chunk + 1}
    return tuple(sorted(index for index in found if 0 <= index < length))


def _far(tokens: Sequence[int], end: int) -> tuple[TokenSequence, ...]:
    last = end - len(tokens[:_FAR_TOKENS])
    starts = [start for start in sorted({*_DEPTHS, end // 2}) if start + 2 * _FAR_TOKENS <= last]
    depths = [
        TokenSequence(name=f"at {start}", tokens=tuple(tokens[:_DEPTH_TOKENS]), start=start)
        for start in reversed(starts)
    ]
    return (TokenSequence(name="far", tokens=tuple(tokens[:_FAR_TOKENS]), start=last), *depths)
