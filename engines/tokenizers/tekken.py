"""Tekken, Mistral-NeMo's tokeniser, and its chat format: mistral-common's, the original."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError, RequestError
from nemo_trt.shown import said, shown
from nemo_trt.utf8 import require_utf8

from .foreign import file_errors, text_errors
from .json_file import MOST_CHARACTERS, read_object
from .mistral_turns import simplify
from .tokenizer import USUAL_TEXT, Message
from .turns import merge_turns

_MOST_TOKENS = 2**20


class TekkenTokenizer:
    """The `Tokenizer` of a tekken.json. Special tokens in a text stay text."""

    def __init__(self, path: Path) -> None:
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        _require_sizes(read_object(path), path)
        with file_errors(path):
            self._mistral: Any = MistralTokenizer.from_file(str(path))
            self._tekken: Any = self._mistral.instruct_tokenizer.tokenizer
            self.tool_calls_id: int | None = _special(self._tekken, "[TOOL_CALLS]")
        self._path = path
        self._leave_out = SpecialTokenPolicy.IGNORE
        self._pieces: dict[int, bytes] = {}  # those asked for: looking one up again takes 5 us
        self.bos_id: int | None = self._tekken.bos_id
        self.eos_ids: tuple[int, ...] = (self._tekken.eos_id,)
        self.vocab_size: int = self._tekken.n_words

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """See `Tokenizer.encode`."""
        require_utf8(text, "prompt")
        with text_errors():
            return list(self._tekken.encode(text, bos=bos, eos=False))

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        known = [token for token in ids if token < self.vocab_size]
        return str(self._tekken.decode(known, special_token_policy=self._leave_out))

    def require_usable(self) -> None:
        """See `Tokenizer.require_usable`: the format is no template."""
        with file_errors(self._path):
            ids = list(self._tekken.encode(USUAL_TEXT, bos=True, eos=False))
            self.decode([*ids, *range(self._tekken.num_special_tokens), *self.eos_ids])

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if not self._tekken.num_special_tokens <= token_id < self.vocab_size:
            return b""
        if (found := self._pieces.get(token_id)) is None:
            found = bytes(self._tekken.id_to_byte_piece(token_id, self._leave_out))
            self._pieces[token_id] = found
        return found

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        continue_final: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """See `Tokenizer.chat`; messages and tools have OpenAI's form.

        An assistant's turn at the end is always continued: the format has no mark that would begin
        another one.
        """
        from mistral_common.exceptions import MistralCommonException
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        if variables:
            raise RequestError(
                f"chat_template_kwargs must be empty, got {', '.join(variables)}: this model's "
                "format is no template."
            )
        require_utf8(messages, "messages")
        require_utf8(tools, "tools")
        offered: list[Any] | None = [dict(tool) for tool in tools] if tools else None
        turns = merge_turns(messages)
        try:
            plain, restored = simplify(turns)
            request: Any = ChatCompletionRequest.from_openai(messages=plain, tools=offered)
            if plain and plain[-1]["role"] == "assistant" and not plain[-1].get("tool_calls"):
                request.messages[-1].prefix = True
            tokens = list(self._mistral.encode_chat_completion(request).tokens)
        except (MistralCommonException, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"The conversation must follow Mistral's format: {said(error)}"
            ) from error
        return restored(tokens, self._tekken.eos_id, self.tool_calls_id, self._encode_text)

    def _encode_text(self, text: str) -> list[int]:
        return self.encode(text, bos=False)


def _require_sizes(layout: dict[str, Any], path: Path) -> None:
    """Refuse sizes that mistral-common would count up to, and patterns without a bound."""
    config = layout.get("config")
    if not isinstance(config, dict):
        raise BundleError(f"{path} must be a readable Tekken file with a config, got none.")
    for name in ("default_num_special_tokens", "default_vocab_size"):
        size = config.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _MOST_TOKENS:
            raise BundleError(
                f"{name} of {path} must be at most {_MOST_TOKENS}, got {shown(size)}."
            )
    special = layout.get("special_tokens")
    for one in special if isinstance(special, list) else ():
        rank = one.get("rank") if isinstance(one, dict) else None
        if not isinstance(rank, int) or not 0 <= rank < config["default_num_special_tokens"]:
            raise BundleError(
                f"special_tokens of {path} must have ranks below default_num_special_tokens, got "
                f"{shown(one)}."
            )
    pattern = config.get("pattern")
    if not isinstance(pattern, str) or len(pattern) > MOST_CHARACTERS:
        raise BundleError(
            f"pattern of {path} must be a text of at most {MOST_CHARACTERS} characters, got "
            f"{shown(pattern)}."
        )


def _special(tekken: Any, name: str) -> int | None:
    """A special token's id; None where this version of Tekken lacks it."""
    for token in range(tekken.num_special_tokens):
        if tekken.id_to_piece(token) == name:
            return token
    return None
