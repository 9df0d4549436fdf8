"""A tokenizer's files with values of wrong types: each is used as it is, or refused in words."""

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from nemo_trt.engines.tokenizers import Detokenizer, open_tokenizer
from nemo_trt.errors import BundleError, NemoTrtError

pytestmark = pytest.mark.unit

GONE = object()
HUGE = "x" * 2**15
VALUES = (
    *(None, 7, -1, float("inf"), 10**30, "", "text", "\ud83d", HUGE),
    *([None], {}, {"content": [1]}, GONE),
)


def byte_level() -> Library:
    alphabet = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)])]
    alphabet += [chr(256 + n) for n in range(256 - len(alphabet))]
    vocabulary = {one: n for n, one in enumerate([*alphabet, "ab"])}
    library = Library(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\\d+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(one, special=True) for one in ("<s>", "</s>")])
    library.add_tokens([AddedToken("<x>")])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
    )
    library.enable_truncation(100)
    library.enable_padding()
    return library


def byte_fallback() -> Library:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁a", "b"]
    model = models.BPE(
        vocab={piece: n for n, piece in enumerate(pieces)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    library = Library(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback()),
            *(decoders.Fuse(), decoders.Strip(" ", 1, 0)),
        ]
    )
    return library


def unigram() -> Library:
    scores = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("▁a", -2.5)]
    library = Library(models.Unigram(scores, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return library


def tekken(**beside: Any) -> dict[str, Any]:
    tokens = [*(bytes([n]) for n in range(256)), b"ab"]
    rows = [
        {"rank": n, "token_bytes": base64.b64encode(one).decode(), "token_str": None}
        for n, one in enumerate(tokens)
    ]
    config = {
        "pattern": r"\d+|\S+|\s+",
        "num_vocab_tokens": 257,
        "default_vocab_size": 1257,
        "default_num_special_tokens": 1000,
        "version": "v3",
    }
    return {"config": config, "vocab": rows, **beside}


def tekken_with_special_tokens() -> dict[str, Any]:
    from mistral_common.tokens.tokenizers.base import SpecialTokens

    special = [
        {"rank": n, "token_str": one.value, "is_control": True}
        for n, one in enumerate(list(SpecialTokens)[:20])
    ]
    return tekken(special_tokens=special)


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True, "lstrip": False},
    "additional_special_tokens": ["<x>"],
    "added_tokens_decoder": {"257": {"content": "<s>", "special": True}},
    "extra_special_tokens": {"image": "<x>"},
    "model_specific_special_tokens": {"image": "<x>"},
    "image_token": "<x>",
    "model_max_length": 100,
    "chat_template": [{"name": "default", "template": TEMPLATE}],
}
MAP = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<x>"]}
FILES: dict[str, tuple[str, Any]] = {
    "byte-level": ("tokenizer.json", byte_level),
    "byte fallback": ("tokenizer.json", byte_fallback),
    "Unigram": ("tokenizer.json", unigram),
    "settings": ("tokenizer_config.json", lambda: CONFIG),
    "one template": ("tokenizer_config.json", lambda: {"chat_template": TEMPLATE}),
    "special tokens": ("special_tokens_map.json", lambda: MAP),
    "Tekken": ("tekken.json", tekken),
    "Tekken with special tokens": ("tekken.json", tekken_with_special_tokens),
}


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document; of long lists and vocabularies the first entries."""
    yield at
    if isinstance(value, dict):
        entries = list(value)
        for key in entries if len(entries) < 20 else entries[:1]:
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from paths(value[index], (*at, index))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def use(folder: Path) -> None:
    """All that a bundle's tokenizer is asked for."""
    tokenizer = open_tokenizer(folder)
    tokenizer.require_usable()
    ids = tokenizer.encode("ab é 🙂 12", bos=True)
    assert isinstance(tokenizer.decode(ids), str)
    detokenizer = Detokenizer(tokenizer)
    for one in (*ids, 0, 1, 5000):
        detokenizer.push(one)
    assert all(isinstance(one, int) for one in (tokenizer.vocab_size, *tokenizer.eos_ids))
    tokenizer.chat([{"role": "user", "content": "ab"}])


@pytest.mark.parametrize("name", FILES)
def test_every_value_of_a_wrong_type_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    file, make = FILES[name]
    if file not in ("tokenizer.json", "tekken.json"):
        byte_level().save(str(tmp_path / "tokenizer.json"))
    made = make()
    document = json.loads(made.to_str()) if isinstance(made, Library) else made
    refused = 0
    for path in paths(document):
        for value in VALUES:
            if value is GONE and not path:
                continue
            (tmp_path / file).write_text(json.dumps(replaced(document, path, value)))
            try:
                use(tmp_path)
            except NemoTrtError as error:
                words, refused = str(error), refused + 1
                assert len(words) < 1500 and "\n" not in words, (path, words[:2000])
            except BaseException as error:
                pytest.fail(f"{path} as {value!r:.80}: {error!r:.300}")
    assert refused > 20


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", b"\xff\xfe", "must be JSON in UTF-8"),
        ("tokenizer_config.json", b'{"bos_token": "\xff"}', "must be JSON in UTF-8"),
        ("tokenizer_config.json", b"[" * 10**6, "must be JSON in UTF-8"),
        ("tokenizer_config.json", b'{"bos_token": "\\ud83d"}', "half a surrogate pair"),
        ("special_tokens_map.json", b"[1]", "must hold a JSON object, got list"),
        ("chat_template.jinja", b"\xff", "must be text in UTF-8"),
        ("chat_template.jinja", b"x" * (2**20 + 1), "at most 1048576 bytes"),
        ("tekken.json", b"\xff", "must be JSON in UTF-8"),
    ],
)
def test_a_file_that_is_no_text_of_its_form_is_named(
    file: str, content: bytes, words: str, tmp_path: Path
) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(BundleError, match=f"{file} .*{words}"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("place", ["text", "pattern", "key", "model"])
def test_a_text_that_would_be_put_in_for_every_character_is_bounded(
    place: str, tmp_path: Path
) -> None:
    layout = json.loads(byte_fallback().to_str())
    replaces = layout["normalizer"]["normalizers"][1]
    if place == "model":
        layout["model"]["unk_token"] = HUGE
    elif place == "key":
        replaces[HUGE] = 1
    else:
        replaces |= {"content": HUGE} if place == "text" else {"pattern": {"String": HUGE}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(BundleError, match=r"Texts in .* must have at most 8192 characters"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["default_num_special_tokens", "default_vocab_size"])
def test_tekkens_sizes_are_bounded_before_they_are_counted_up_to(name: str, tmp_path: Path) -> None:
    layout = tekken()
    layout["config"][name] = 2**31
    (tmp_path / "tekken.json").write_text(json.dumps(layout))
    with pytest.raises(BundleError, match=f"{name} of .* must be at most 1048576, got 2147483648"):
        open_tokenizer(tmp_path)
