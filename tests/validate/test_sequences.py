"""Which tokens of a validation's sequences are judged."""

from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.errors import RequestError
from nemo_trt.validate.sequences import EDGE, LONG_STEPS, Sequences, make_sequences

pytestmark = pytest.mark.unit


def sequences(chunk: int | None, max_seq_len: int = 4096) -> Sequences:
    config = SimpleNamespace(vocab_size=512, max_position_embeddings=max_seq_len)
    session: Any = SimpleNamespace(config=config, max_seq_len=max_seq_len, prefill_chunk=chunk)
    return make_sequences(session, None)


@pytest.mark.parametrize("chunk", [None, 64, 700, 1024])
def test_the_long_text_passes_a_prefill_chunk_and_is_judged_on_both_sides_of_every_edge(
    chunk: int | None,
) -> None:
    long = sequences(chunk).long
    edge, length = chunk or EDGE, len(long.tokens)
    assert length > edge + LONG_STEPS and long.wanted is not None
    judged = set(long.wanted)
    assert {0, edge - 1, edge, *range(length - LONG_STEPS - 1, length)} <= judged
    assert {at for at in (EDGE - 1, EDGE) if at < length} <= judged
    assert judged <= set(range(length)) and sorted(judged) == list(long.wanted)


def test_logits_of_judged_tokens_are_found_where_the_reference_keeps_them() -> None:
    long = sequences(64).long
    assert long.wanted is not None
    first = long.wanted.index(63)
    assert long.rows(63, 3) == [first, first + 1, first + 2]
    assert sequences(64).texts[0].rows(5, 2) == [5, 6]


def test_everything_fits_a_short_session() -> None:
    found = sequences(1024, max_seq_len=64)
    assert all(one.start + len(one.tokens) <= 64 and one.start >= 0 for one in found.every)


def test_a_prompt_that_says_nothing_is_refused() -> None:
    config = SimpleNamespace(vocab_size=512, max_position_embeddings=512)
    session: Any = SimpleNamespace(config=config, max_seq_len=512, prefill_chunk=None)
    tokenizer: Any = SimpleNamespace(encode=lambda text, bos: [1, *map(ord, text)])
    make_sequences(session, tokenizer, ["nine more"])
    with pytest.raises(RequestError, match="Prompt 2 must have at least 10 tokens, got 9"):
        make_sequences(session, tokenizer, ["nine more", "only 8 m"])
