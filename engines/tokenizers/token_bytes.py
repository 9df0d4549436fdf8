"""How an entry of a tokenizer.json's vocabulary becomes bytes, by the decoder that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError

_SPACE = "▁"  # SentencePiece's


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
    parts = (decoder or {}).get("decoders", [decoder or {}])
    kinds = {part.get("type"): part for part in parts}
    if "ByteLevel" in kinds:
        table = _byte_level_alphabet()

        def byte_level(piece: str) -> bytes:
            if any(character not in table for character in piece):
                return piece.encode()  # an entry that is no byte-level one, as it stands
            return bytes(table[character] for character in piece)

        return TokenBytes(of=byte_level, of_first=byte_level, exact=True)
    if "ByteFallback" in kinds:
        strip = kinds.get("Strip", {})
        count = strip.get("start", 0) if strip.get("content") == " " else 0
        return TokenBytes(
            of=_byte_fallback,
            of_first=lambda piece: _without_spaces(_byte_fallback(piece), count),
            exact=False,
        )
    if "Metaspace" in kinds:
        space = kinds["Metaspace"].get("replacement", _SPACE)
        drops = kinds["Metaspace"].get("prepend_scheme", "always") != "never"
        return TokenBytes(
            of=lambda piece: piece.replace(space, " ").encode(),
            of_first=lambda piece: piece.replace(space, "" if drops else " ").encode(),
            exact=True,
        )
    raise BundleError(
        f"The decoder of {path} must be ByteLevel, ByteFallback or Metaspace, got "
        f"{', '.join(sorted(map(str, kinds)))}. Other kinds are not supported."
    )


def _byte_fallback(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass  # a token that only looks like a byte
    return piece.replace(_SPACE, " ").encode()


def _without_spaces(data: bytes, count: int) -> bytes:
    spaces = len(data) - len(data.lstrip(b" "))
    return data[min(spaces, count) :]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable bytes stand for themselves, the others follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table
