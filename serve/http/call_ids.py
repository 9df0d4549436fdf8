"""Ids of tool calls: any that a client sends, as the nine letters and digits that Mistral knows."""

import hashlib
import re
import secrets
import string

_MISTRAL = re.compile("[a-zA-Z0-9]{9}")
_ALPHABET = string.ascii_letters + string.digits
_KEY = b"nemo-trt tool call id"


def mistral_id(given: str) -> str:
    """The id that the model sees for a client's: itself where it fits, else a keyed hash of it.

    The same id always becomes the same one, so a call and its result match, and a conversation
    that grows keeps its prefix in the cache. The client never sees the hash.
    """
    if _MISTRAL.fullmatch(given):
        return given
    digest = hashlib.blake2s(given.encode("utf-8", "surrogatepass"), key=_KEY).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(9):
        number, letter = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[letter])
    return "".join(letters)


def new_id() -> str:
    """An id for a call of the model."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))
