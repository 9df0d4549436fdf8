"""What lies beside a tokenizer.json: the names of its special tokens, and its chat templates."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_trt.errors import BundleError
from nemo_trt.shown import shown

from .json_file import read_object, read_template

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
DEFAULT, WITH_TOOLS = "default", "tool_use"

_NAMED = frozenset(f"{name}_token" for name in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"])
# Where transformers keeps tokens of other names: {"image_token": "<image>", ...}.
_GROUPS = ("model_specific_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """Settings of a tokenizer, as transformers reads them.

    Attributes:
        named_tokens: what chat templates see: "bos_token" and so on, and any other "..._token".
        special: every token that is declared special here.
        templates: chat templates by name; a single one is "default".
    """

    named_tokens: dict[str, str]
    special: tuple[str, ...]
    templates: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerSettings":
        """Read tokenizer_config.json, special_tokens_map.json and the files of templates.

        Raises:
            BundleError: a file cannot be read, or holds a value of a wrong type.
        """
        path = folder / CONFIG
        config = read_object(path) if path.is_file() else {}
        declared = _added_tokens(config, path)
        named = _named_tokens(config, path)
        lists = [*_listed(config, path)]
        # Since transformers 4.34 tokenizer_config.json says it all, and the older file is not read.
        if "added_tokens_decoder" not in config and (folder / SPECIAL_TOKENS).is_file():
            older = read_object(folder / SPECIAL_TOKENS)
            named |= _named_tokens(older, folder / SPECIAL_TOKENS)
            lists += _listed(older, folder / SPECIAL_TOKENS)
        special = dict.fromkeys((*declared, *named.values(), *lists))
        return cls(
            named_tokens=named, special=tuple(special), templates=_templates(folder, config, path)
        )


def _named_tokens(raw: dict[str, Any], path: Path) -> dict[str, str]:
    found = {}
    for name, value in raw.items():
        if name in _NAMED and value is not None:
            found[name] = _content(value, name, path)
        elif name.endswith("_token") and isinstance(value, str):
            found[name] = value
    for group in _GROUPS:
        if isinstance(raw.get(group), dict):
            found |= {
                str(name): _content(value, f"{group}.{name}", path)
                for name, value in raw[group].items()
            }
    return found


def _listed(raw: dict[str, Any], path: Path) -> Iterator[str]:
    """Special tokens without a name of their own."""
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = raw.get(name)
        if isinstance(value, list):
            yield from (_content(token, name, path) for token in value)
        elif value is not None and not isinstance(value, dict):
            raise BundleError(f"{name} of {path} must be a list of tokens, got {shown(value)}.")


def _added_tokens(config: dict[str, Any], path: Path) -> Iterator[str]:
    """Contents of `added_tokens_decoder` ({"2": {"content": "</s>", "special": true}, ...})."""
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise BundleError(f"added_tokens_decoder of {path} must be an object, got {shown(added)}.")
    tokens = [(_content(value, "added_tokens_decoder", path), value) for value in added.values()]
    return (text for text, value in tokens if isinstance(value, dict) and value.get("special"))


def _content(token: Any, name: str, path: Path) -> str:
    """A token, which stands in these files as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise BundleError(f"{name} of {path} must be a token's text, got {shown(token)}.")
    return text


def _templates(folder: Path, config: dict[str, Any], path: Path) -> dict[str, str]:
    """Template files count before the templates of tokenizer_config.json."""
    files = {DEFAULT: folder / TEMPLATE} if (folder / TEMPLATE).is_file() else {}
    for file in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")):
        files[file.stem] = file
    if files:
        return {name: read_template(file) for name, file in files.items()}
    stored = config.get("chat_template")
    if stored is None:
        return {}
    if isinstance(stored, str):
        return {DEFAULT: stored}
    if isinstance(stored, dict):  # by name
        stored = [{"name": name, "template": text} for name, text in stored.items()]
    if not isinstance(stored, list) or not all(
        isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
        for one in stored
    ):
        raise BundleError(
            f"chat_template of {path} must be a template, or a list of objects with name and "
            f"template, got {shown(stored)}."
        )
    return {one["name"]: one["template"] for one in stored}
