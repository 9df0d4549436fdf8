"""How an entry of a tokenizer.json's vocabulary becomes bytes, by the decoder that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError
from nemo_trt.shown import shown

_SPACE = "▁"  # SentencePiece's
_REPLACE = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
_FUSE = {"type": "Fuse"}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """The rule of one tokenizer.

    Attributes:
        of: bytes of an entry.
        of_first: bytes of an entry that begins a text: SentencePiece puts a space before every
            text, and its decoders take it away again.
        exact: whether the library's decoder yields just these bytes. That of byte fallback makes
            all of a run of bytes U+FFFD when one of them is wrong.
    """

    of: Callable[[str], bytes]
    of_first: Callable[[str], bytes]
    exact: bool


def token_bytes(decoder: Any, path: Path) -> TokenBytes:
    """The rule that belongs to the decoder of `path`.

    Raises:
        BundleError: it is none of those that are known.
    """
    found = decoder if isinstance(decoder, dict) else {}
    parts = found.get("decoders", [found])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        parts = []
    kinds = [part.get("type") for part in parts if part != _FUSE]
    if kinds == ["ByteLevel"]:
        return _byte_level()
    if kinds == ["Metaspace"]:
        return _metaspace(*(part for part in parts if part["type"] == "Metaspace"))
    if parts and parts[0] == _REPLACE and kinds[:2] == ["Replace", "ByteFallback"]:
        if parts[-2:] == [_FUSE, _STRIP] and len(kinds) == 3:
            return _byte_fallback(drops=True)
        if len(kinds) == 2:
            return _byte_fallback(drops=False)
    raise BundleError(
        f"The decoder of {path} must be ByteLevel, Metaspace, or ByteFallback as SentencePiece's "
        f"BPE has it, got {shown(decoder)}. Other decoders are not supported."
    )


def _byte_level() -> TokenBytes:
    table = _byte_level_alphabet()

    def of(piece: str) -> bytes:
        if any(character not in table for character in piece):
            return piece.encode()  # an entry that is no byte-level one, as it stands
        return bytes(table[character] for character in piece)

    return TokenBytes(of=of, of_first=of, exact=True)


def _metaspace(part: dict[str, Any]) -> TokenBytes:
    space = part.get("replacement", _SPACE)
    drops = part.get("prepend_scheme", "always") != "never"
    return TokenBytes(
        of=lambda piece: piece.replace(space, " ").encode(),
        of_first=lambda piece: piece.replace(space, "" if drops else " ").encode(),
        exact=True,
    )


def _byte_fallback(*, drops: bool) -> TokenBytes:
    def of(piece: str) -> bytes:
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                pass  # a token that only looks like a byte
        return piece.replace(_SPACE, " ").encode()

    def of_first(piece: str) -> bytes:
        return of(piece).removeprefix(b" ")

    return TokenBytes(of=of, of_first=of_first if drops else of, exact=False)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable bytes stand for themselves, the others follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table
