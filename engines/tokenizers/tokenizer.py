"""What the Runner needs of a tokeniser."""

from collections.abc import Mapping, Sequence
from typing import Protocol

Message = Mapping[str, object]
"""One turn of a conversation in OpenAI's form: {"role": "user", "content": "..."} and so on."""

USUAL_TEXT = "Text, 12 é 漢 🙂\n"
"""Tried when a tokenizer is checked: whole words, bytes, and what a vocabulary may lack."""


class Tokenizer(Protocol):
    """Text to tokens and back.

    Attributes:
        tool_calls_id: the token that begins calls of tools in Mistral's format, where the model
            has that format.
    """

    bos_id: int | None
    eos_ids: tuple[int, ...]
    vocab_size: int
    tool_calls_id: int | None

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Tokens of a text; with `bos` the tokeniser's own start token is put before them."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens: special and unknown ones left out, invalid UTF-8 as U+FFFD."""

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """The bytes that a token adds to a text; none for a special or an unknown token.

        Args:
            first: the token is the first of the text: some tokenizers put a space before every
                text, which is none of it.
        """

    def require_usable(self) -> None:
        """Try what is else only tried when it is used.

        Raises:
            BundleError: an end token is named that the vocabulary does not have.
            RequestError: a chat template cannot be compiled; all but `chat` works.
        """

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        continue_final: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Tokens of a conversation in the model's own format, ready for the answer.

        Args:
            continue_final: the last turn is the assistant's, and the answer goes on with it.
            variables: more variables of the chat template, where there is one; "chat_template"
                names one of several templates.

        Raises:
            RequestError: the conversation is not one that the format allows.
        """
