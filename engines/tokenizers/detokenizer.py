"""Turns tokens into text as they come, never half a character."""

import codecs

from .tokenizer import Tokenizer


class Detokenizer:
    """Text of one row. Joined, what it gives back is the text of all its tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._first = True

    def push(self, token_id: int) -> str:
        """Take a token; return the characters that are complete now.

        Bytes that can no longer become a character come as U+FFFD.
        """
        data = self._tokenizer.token_bytes(token_id)
        if self._first and data:
            self._first = False
            data = self._tokenizer.token_bytes(token_id, first=True)
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The row has ended: what is left of an unfinished character, as U+FFFD."""
        return self._decoder.decode(b"", final=True)
