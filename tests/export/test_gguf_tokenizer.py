"""The tokenizer in a GGUF header with values of wrong types: rebuilt, or refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import CheckpointError, NemoTrtError
from nemo_trt.export.checkpoints.gguf_tokenizer import tokenizer_of

pytestmark = pytest.mark.unit

ALPHABET = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)])]
ALPHABET += [chr(256 + n) for n in range(256 - len(ALPHABET))]
SMOLLM: dict[str, Any] = {
    "llama.context_length": 64,
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": [*ALPHABET, "ab", "<s>"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": [1] * 257 + [3],
    "tokenizer.ggml.bos_token_id": 257,
    "tokenizer.ggml.eos_token_id": 257,
    "tokenizer.ggml.padding_token_id": 257,
    "tokenizer.ggml.unknown_token_id": 257,
    "tokenizer.chat_template": "{{ messages[0].content }}",
}
TEKKEN = {
    "tokenizer.ggml.pre": "tekken",
    "tokenizer.ggml.tokens": [*(f"<{n}>" for n in range(1000)), *ALPHABET],
}
VALUES = (
    *(None, 7, -1, 1.5, float("nan"), 2**62, True, "", "text", "x" * 10**6),
    *([], [None], ["a"], ["Ω"], ["a b"] * 2, ["a b c"], ["é é"], [7], [[1]], [{}], {}, {"a": 1}),
)


def use(fields: dict[str, Any], folder: Path) -> bool:
    """Whether there is a tokenizer, which is then used."""
    files = tokenizer_of(fields, Path("x.gguf"))
    for file in files:
        file.write_to(folder)
    if files:
        tokenizer = open_tokenizer(folder)
        tokenizer.require_usable()
        assert tokenizer.decode(tokenizer.encode("ab 1", bos=False)) == "ab 1"
    return bool(files)


@pytest.mark.parametrize("key", SMOLLM)
def test_a_field_of_a_wrong_type_is_refused_in_a_sentence(key: str, tmp_path: Path) -> None:
    assert use(SMOLLM, tmp_path)
    refused = 0
    for value in VALUES:
        try:
            use(SMOLLM | {key: value}, tmp_path)
        except NemoTrtError as error:
            refused += 1
            assert len(str(error)) < 1000 and "\n" not in str(error)
    assert refused >= 5 or key in ("llama.context_length", "tokenizer.ggml.pre")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merges": ["a"]}, "merges in x.gguf must join two tokens to a third"),
        ({"merges": ["a Ω"]}, "merges in x.gguf must join two tokens to a third"),
        ({"merges": [1]}, "merges in x.gguf must be a list of texts"),
        ({"tokens": 7}, "tokens in x.gguf must be a list of texts"),
        ({"token_type": [1]}, "must state a type for every token"),
        ({"eos_token_id": 258}, "eos_token_id in x.gguf must be the id of one of 258 tokens"),
        ({"bos_token_id": [1]}, "bos_token_id in x.gguf must be the id of one of 258 tokens"),
    ],
)
def test_the_sentence_names_the_field(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        use(SMOLLM | {f"tokenizer.ggml.{key}": value for key, value in change.items()}, tmp_path)


def test_tekkens_tokens_must_be_spelled_in_bytes(tmp_path: Path) -> None:
    fields = TEKKEN | {"tokenizer.ggml.tokens": [*TEKKEN["tokenizer.ggml.tokens"], "日本"]}
    (file,) = tokenizer_of(fields, Path("x.gguf"))
    with pytest.raises(CheckpointError, match=r"Tokens of x\.gguf must be spelled in bytes"):
        file.write_to(tmp_path)
