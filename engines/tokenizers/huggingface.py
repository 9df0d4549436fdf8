"""A tokenizer.json with the chat template beside it."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nemo_trt.errors import BundleError, RequestError

from .tokenizer import Message
from .turns import merge_turns

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_END = "<END-OF-THE-TURN-THAT-GOES-ON> "
"""Stands behind a turn to be continued; the space tells whether the template trims."""


class HuggingFaceTokenizer:
    """The `Tokenizer` of a tokenizer.json: byte-level BPE, or BPE with byte fallback."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        path = folder / "tokenizer.json"
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
            layout = json.loads(path.read_text(encoding="utf-8"))
            config = {}
            if (folder / CONFIG).is_file():
                config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exceptions
            raise BundleError(f"{path} is no readable tokenizer: {error}.") from error
        self._bytes_of = _byte_rule(layout.get("decoder"), path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = {
            int(token["id"]): b"" if token["special"] else str(token["content"]).encode()
            for token in layout.get("added_tokens", [])
        }
        self._named = {
            name: _content(config[name])
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if config.get(name) is not None
        }
        self.bos_id: int | None = self._id("bos_token")
        eos = self._id("eos_token")
        self.eos_ids: tuple[int, ...] = () if eos is None else (eos,)
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        template = _template_text(folder, config)
        self.tool_calls_id: int | None = (
            self._tokenizer.token_to_id("[TOOL_CALLS]") if "tools" in (template or "") else None
        )
        self._template = _compile(template)

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(self._tokenizer.encode(text, add_special_tokens=bos).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if token_id in self._special:
            return self._special[token_id]
        piece = self._tokenizer.id_to_token(token_id)
        return b"" if piece is None else self._bytes_of(piece)

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
        if self._template is None:
            raise RequestError(
                "This bundle's tokenizer has no chat template. Use `run`, or add the template to "
                "the checkpoint and export again."
            )
        if not messages:
            raise RequestError("messages must hold at least one message.")
        given = [dict(message) for message in messages]
        merged = merge_turns(given)
        try:
            text = self._render(given, tools, continue_final, variables or {})
        except RequestError:
            if merged == given:
                raise
            text = self._render(merged, tools, continue_final, variables or {})
        return list(self._tokenizer.encode(_utf8(text), add_special_tokens=False).ids)

    def _render(
        self,
        turns: list[dict[str, Any]],
        tools: Sequence[Mapping[str, object]] | None,
        continue_final: bool,
        variables: Mapping[str, object],
    ) -> str:
        import jinja2

        if continue_final:
            turns = [
                *turns[:-1],
                turns[-1] | {"content": f"{turns[-1].get('content') or ''}{_END}"},
            ]
        try:
            text = str(
                self._template.render(
                    **{
                        **variables,
                        "messages": turns,
                        "tools": [dict(tool) for tool in tools] if tools else None,
                        "add_generation_prompt": not continue_final,
                        **self._named,
                    }
                )
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise RequestError(f"The chat template refuses the conversation: {error}") from error
        if not continue_final:
            return text
        if text.count(_END.strip()) != 1:
            raise RequestError(
                "A turn to continue must be shown once by the chat template, got a template that "
                "does not. Leave continue_final_message out."
            )
        shown, end, _ = text.partition(_END)
        return shown if end else text.partition(_END.strip())[0].rstrip()

    def _id(self, name: str) -> int | None:
        token = self._named.get(name)
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"messages must be text that UTF-8 can hold: {error}.") from error
    return text


def _content(token: Any) -> str:
    """A token of tokenizer_config.json, which stands there as text or as an object."""
    return str(token["content"] if isinstance(token, dict) else token)


def _template_text(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name, of which one is the default
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return template


def _compile(template: str | None) -> Any:
    if template is None:
        return None
    import jinja2.ext
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise BundleError(f"The chat template must be valid Jinja: {error}.") from error


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    """JSON as transformers' templates have it: no HTML escapes, no ASCII escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _byte_rule(decoder: Any, path: Path) -> Any:
    """How a vocabulary entry becomes bytes, by the decoder that tokenizer.json names."""
    kinds = set()
    for part in (decoder or {}).get("decoders", [decoder or {}]):
        kinds.add(part.get("type"))
    if "ByteLevel" in kinds:
        table = _byte_level_alphabet()
        return lambda piece: bytes(table[character] for character in piece)
    if "ByteFallback" in kinds:
        return _byte_fallback
    raise BundleError(
        f"{path} must decode by ByteLevel or ByteFallback, got {sorted(map(str, kinds))}."
    )


def _byte_fallback(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable bytes stand for themselves, the others follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table
