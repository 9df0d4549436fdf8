"""A tokenizer.json with what lies beside it: special tokens and chat templates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError, RequestError
from nemo_trt.shown import shown
from nemo_trt.utf8 import require_utf8

from .chat_template import ChatTemplates
from .foreign import file_errors, text_errors
from .json_file import read_object, require_short_texts
from .settings import CONFIG, TokenizerSettings
from .token_bytes import token_bytes
from .tokenizer import USUAL_TEXT, Message
from .turns import merge_turns


class HuggingFaceTokenizer:
    """The `Tokenizer` of a tokenizer.json: byte-level, or SentencePiece's BPE and Unigram."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        path = folder / "tokenizer.json"
        layout = read_object(path)
        require_short_texts(layout, path)
        with file_errors(path):
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        self._path = path
        settings = TokenizerSettings.read(folder)
        self._bytes = token_bytes(layout.get("decoder"), path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._declare_special(settings)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, one in added.items() if one.special)
        self._named = settings.named_tokens
        self.bos_id: int | None = self._id("bos_token")
        eos = self._id("eos_token")
        self.eos_ids: tuple[int, ...] = () if eos is None else (eos,)
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        self._templates = ChatTemplates(settings.templates, settings.named_tokens)
        takes_tools = any("tools" in text for text in settings.templates.values())
        self.tool_calls_id: int | None = (
            self._tokenizer.token_to_id("[TOOL_CALLS]") if takes_tools else None
        )

    def require_usable(self) -> None:
        """See `Tokenizer.require_usable`."""
        for name in ("bos_token", "eos_token"):
            if name in self._named and self._id(name) is None:
                raise BundleError(
                    f"{name} of {CONFIG} must be in the vocabulary of tokenizer.json, got "
                    f"{shown(self._named[name])}."
                )
        with file_errors(self._path):
            self.decode(list(self._tokenizer.encode(USUAL_TEXT, add_special_tokens=True).ids))
        self._templates.require_usable()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """See `Tokenizer.encode`."""
        require_utf8(text, "prompt")
        with text_errors():
            return list(self._tokenizer.encode(text, add_special_tokens=bos).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        if self._bytes.exact:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        shown = [token for token in ids if self.token_bytes(token)]
        pieces = [self.token_bytes(token, first=at == 0) for at, token in enumerate(shown)]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        known = 0 <= token_id < self.vocab_size and token_id not in self._special
        piece = self._tokenizer.id_to_token(token_id) if known else None
        if piece is None:
            return b""
        return self._bytes.of_first(piece) if first else self._bytes.of(piece)

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        continue_final: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """See `Tokenizer.chat`; rendered by the checkpoint's own template, in a sandbox.

        Where the template refuses late system messages or two turns of one role in a row, it is
        given them moved to the front and joined.
        """
        if not messages:
            raise RequestError("messages must hold at least one message.")
        require_utf8(messages, "messages")
        require_utf8(tools, "tools")
        given = [dict(message) for message in messages]
        merged = merge_turns(given)
        wanted: dict[str, Any] = {"continue_final": continue_final, "variables": variables}
        try:
            text = self._templates.render(given, tools, **wanted)
        except RequestError:
            if merged == given:
                raise
            text = self._templates.render(merged, tools, **wanted)
        require_utf8(text, "What the chat template writes")
        with text_errors():
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _declare_special(self, settings: TokenizerSettings) -> None:
        """Make entries of the vocabulary special that the files beside it call so.

        A token that the vocabulary lacks stays text: a new id would be beyond the model's.
        """
        import tokenizers

        known = {one.content for one in self._tokenizer.get_added_tokens_decoder().values()}
        self._tokenizer.add_tokens(
            [
                tokenizers.AddedToken(token, special=True, normalized=False)
                for token in settings.special
                if token not in known and self._tokenizer.token_to_id(token) is not None
            ]
        )

    def _id(self, name: str) -> int | None:
        token = self._named.get(name)
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found
