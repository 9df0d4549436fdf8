"""Streamed text is what the library that defines the tokenizer decodes from all its tokens."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from nemo_trt.engines.tokenizers import Detokenizer, open_tokenizer
from nemo_trt.errors import BundleError

pytestmark = pytest.mark.unit

REPLACE, BYTES, FUSE, STRIP = (
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
)
TEXTS = ("Hello", " Hello", "  two spaces", "a b", "né 漢 🙂", "\n a", "<x> b", "a  <x>", "▁", "")


def bpe(*decoder: Any, prepend: bool = False) -> Library:
    """SentencePiece's BPE: bytes where a character has no entry."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    pieces += ["▁", *"Helotwspacb", "▁a", "▁▁"]
    model = models.BPE(
        vocab={piece: n for n, piece in enumerate(pieces)},
        merges=[("▁", "a"), ("▁", "▁")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    library = Library(model)
    steps = [*([normalizers.Prepend("▁")] if prepend else []), normalizers.Replace(" ", "▁")]
    library.normalizer = normalizers.Sequence(steps)
    library.decoder = decoders.Sequence(list(decoder))
    return library


def unigram(scheme: str, replacement: str = "▁") -> Library:
    pieces = ["<unk>", replacement, *"Helotwspacbné漢🙂\n<x>", f"{replacement}a", replacement * 2]
    library = Library(models.Unigram([(one, -float(n)) for n, one in enumerate(pieces)], unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement, scheme)
    library.decoder = decoders.Metaspace(replacement, scheme)
    return library


def byte_level(prefix: bool) -> Library:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    library.decoder = decoders.ByteLevel()
    return library


FAMILIES: dict[str, Callable[[], Library]] = {
    "Llama 2, Mistral v1": lambda: bpe(REPLACE, BYTES, FUSE, STRIP, prepend=True),
    "Llama 2 without a prefix": lambda: bpe(REPLACE, BYTES, FUSE, STRIP),
    "Gemma": lambda: bpe(REPLACE, BYTES, FUSE),
    "byte fallback, not fused": lambda: bpe(REPLACE, BYTES),
    "Unigram": lambda: unigram("always"),
    "Unigram, first": lambda: unigram("first"),
    "Unigram, never": lambda: unigram("never"),
    "Unigram of another space": lambda: unigram("always", "_"),
    "byte-level": lambda: byte_level(False),
    "byte-level with a prefix": lambda: byte_level(True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_text_is_the_librarys(family: str, tmp_path: Path) -> None:
    library = FAMILIES[family]()
    library.add_special_tokens([AddedToken("<s>", special=True)])
    library.add_tokens([AddedToken("<x>"), AddedToken(" y"), AddedToken("▁z"), AddedToken("é")])
    library.save(str(tmp_path / "tokenizer.json"))
    start = library.token_to_id("<s>")
    prompts = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    drawn = random.Random(0)
    # No lone bytes: of half a character, the library's byte fallback makes all of its bytes U+FFFD.
    known = [
        token
        for token in range(library.get_vocab_size())
        if not (library.id_to_token(token) or "").startswith("<0x")
    ]
    prompts += [drawn.choices(known, k=5) for _ in range(200)] if family != "byte-level" else []
    tokenizer = open_tokenizer(tmp_path)
    for ids in (*prompts, *([start, *one] for one in prompts)):
        whole = library.decode(ids, skip_special_tokens=True)
        detokenizer = Detokenizer(tokenizer)
        text = "".join(map(detokenizer.push, ids)) + detokenizer.flush()
        assert text == whole, (ids, [library.id_to_token(one) for one in ids])
        assert tokenizer.decode(ids) == whole


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([REPLACE, BYTES, STRIP, FUSE]),
        decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 2, 0)]),
        decoders.Sequence([REPLACE, BYTES, FUSE, decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Replace("_", " "), BYTES, FUSE]),
        decoders.Sequence([decoders.Replace(Regex("▁"), " "), BYTES, FUSE]),
        decoders.Sequence([decoders.Metaspace(), decoders.Replace("a", "b")]),
        decoders.Sequence([decoders.ByteLevel(), decoders.ByteLevel()]),
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
    ],
    ids=str,
)
def test_a_decoder_that_is_not_known_exactly_is_refused(decoder: Any, tmp_path: Path) -> None:
    library = bpe(REPLACE)
    library.decoder = decoder
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match=r"The decoder of .* must be ByteLevel, Metaspace, or"):
        open_tokenizer(tmp_path)
