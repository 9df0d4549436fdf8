"""The tokenizer inside a GGUF file, where its kind is one that can be rebuilt exactly."""

import base64
import json
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown

from .fields import Fields
from .tokenizer_files import TokenizerFile, tekken_of_vocabulary

_CONTROL_TOKEN = 3  # GGUF's token type of special tokens
_TEKKEN_SPECIAL = 1000
_SPECIAL = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
_NAMES = {str: "texts", int: "integers"}


def tokenizer_of(fields: dict[str, Any], path: Path) -> tuple[TokenizerFile, ...]:
    """The tokenizer's files; none when the file names another pre-tokenizer than these.

    Raises:
        CheckpointError: a field is of a wrong type, or names a token that is not there.
    """
    kind = fields.get("tokenizer.ggml.pre")
    if kind not in ("tekken", "smollm") or "tokenizer.ggml.tokens" not in fields:
        return ()
    _require_fields(fields, path)
    tokens = fields["tokenizer.ggml.tokens"]
    if kind == "tekken":
        return (tekken_of_vocabulary(lambda: _tekken_vocabulary(tokens, path), str(path)),)
    if "tokenizer.ggml.merges" in fields:
        parts = (
            ("tokenizer.json", lambda: smollm_tokenizer(fields)),
            ("tokenizer_config.json", lambda: _settings(fields)),
        )
        return tuple(TokenizerFile(name=n, path=None, contents=make) for n, make in parts)
    return ()


def _require_fields(fields: dict[str, Any], path: Path) -> None:
    checked = Fields(fields, path)
    tokens = fields["tokenizer.ggml.tokens"]
    for name, kind in (("tokens", str), ("merges", str), ("token_type", int)):
        value = fields.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
            raise checked.error(f"tokenizer.ggml.{name}", f"must be a list of {_NAMES[kind]}")
    known = set(tokens)
    for merge in fields.get("tokenizer.ggml.merges", []):
        parts = merge.split(" ")
        if len(parts) != 2 or not known.issuperset((*parts, "".join(parts))):
            raise CheckpointError(
                f"tokenizer.ggml.merges in {path} must join two tokens to a third, got "
                f"{shown(merge)}."
            )
    if len(fields.get("tokenizer.ggml.token_type", tokens)) != len(tokens):
        raise checked.error("tokenizer.ggml.token_type", "must state a type for every token")
    for _, name in _SPECIAL:
        key = f"tokenizer.ggml.{name}_token_id"
        value = fields.get(key, 0)
        if not isinstance(value, int) or not 0 <= value < len(tokens):
            raise checked.error(key, f"must be the id of one of {len(tokens)} tokens")
    if not isinstance(fields.get("tokenizer.chat_template", ""), str):
        raise checked.error("tokenizer.chat_template", "must be a text")


def _settings(fields: dict[str, Any]) -> bytes:
    return (json.dumps(tokenizer_config(fields), indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer_config.json: special tokens and the chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    special = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in _SPECIAL
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    template = fields.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
        **({"chat_template": template} if template else {}),
    }


def smollm_tokenizer(fields: dict[str, Any]) -> bytes:
    """A tokenizer.json: byte-level BPE whose digits stand alone, as "smollm" means."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields.get("tokenizer.ggml.token_type", [0] * len(tokens))
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return str(tokenizer.to_str(pretty=True)).encode()


def _tekken_vocabulary(tokens: list[str], path: Path) -> bytes:
    """Tekken's list of tokens from their byte-level spelling."""
    byte_of = {letter: byte for byte, letter in _byte_letters().items()}
    rows = []
    for rank, token in enumerate(tokens[_TEKKEN_SPECIAL:]):
        if not all(letter in byte_of for letter in token):
            raise CheckpointError(
                f"Tokens of {path} must be spelled in bytes, as Tekken's are, got {shown(token)}."
            )
        data = bytes(byte_of[letter] for letter in token)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        rows.append(
            {
                "rank": rank,
                "token_bytes": base64.b64encode(data).decode(),
                "token_str": text,
            }
        )
    return json.dumps(rows).encode()


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter of every byte: itself where it prints, else the next letter from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in found)
    return {**found, **{byte: chr(256 + n) for n, byte in enumerate(list(others))}}
