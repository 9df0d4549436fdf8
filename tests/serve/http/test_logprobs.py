"""Log-probabilities of prompts in vLLM's form."""

from typing import Any

import pytest

from nemo_trt.serve.http.logprobs import prompt_entries
from nemo_trt.serve.scoring import TokenScore

pytestmark = pytest.mark.unit


class Letters:
    """A tokenizer: each token is a letter."""

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([97 + token_id])


def test_ranks_count_from_the_likeliest_and_the_token_itself_is_always_there() -> None:
    tokenizer: Any = Letters()
    top = ((1, -0.1), (2, -2.0), (3, -3.0))
    scores = [
        TokenScore(token_id=2, logprob=-2.0, rank=2, top=top),
        TokenScore(token_id=5, logprob=-9.0, rank=6, top=top),
    ]
    first, *entries = prompt_entries(tokenizer, scores, 2)
    likeliest = {
        "1": {"logprob": -0.1, "rank": 1, "decoded_token": "b"},
        "2": {"logprob": -2.0, "rank": 2, "decoded_token": "c"},
    }
    own = {"5": {"logprob": -9.0, "rank": 6, "decoded_token": "f"}}
    assert first is None and entries == [likeliest, likeliest | own]
