"""Says in plain words which field of a request is wrong, whatever the validator's own words."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_trt.shown import shown

from .refused import REFUSED

_LONGEST_SHOWN = 80
_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "text that UTF-8 can hold (half a surrogate pair is none)",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of at most 64 bits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "string_pattern_mismatch": "text that matches {pattern}",
}
"""Type of error -> what the field must be; the names in braces are the error's own values."""


def explain(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str | None]:
    """One sentence on a request that did not pass, and the path of its field.

    Args:
        errors: of pydantic; where a field may be one of several kinds there is one for each.
        body: what was sent.
    """
    error = max(errors, key=lambda found: (_is_of_its_kind(found), len(_path(found, body) or "")))
    param = _path(error, body)
    kind = error["type"]
    if kind.startswith("union_tag"):
        return _explain_tag(error, param)
    if kind == "missing":
        return f"{param or 'The body'} must be given.", param
    name = (param or "").split(".")[0].split("[")[0]
    if name in REFUSED:
        return f"{name} {REFUSED[name]}", param
    if kind == "extra_forbidden":
        return f"{param} is not a field that this server knows; nothing is ignored.", param
    if kind == "of_a_field":  # of an object that was refused for one of its fields
        return str(error["msg"]), f"{param}.{error['ctx']['field']}"
    if kind in ("value_error", "assertion_error"):
        message = str(error["msg"]).removeprefix("Value error, ")
        word = message.split(" ")[0]
        return message, param or (word if word.replace(".", "_").isidentifier() else None)
    same = [found for found in errors if _path(found, body) == param]
    for found in same:  # of the right kind, but too long: that it could be another kind is no help
        if found["type"] in ("too_long", "too_short"):
            return _explain_length(found, param), param
    expected = dict.fromkeys(_expected(found) for found in same)
    words = " or ".join(expected)
    return f"{param or 'The body'} must be {words}, got {_shown(error.get('input'))}.", param


def _is_of_its_kind(error: Mapping[str, Any]) -> bool:
    """Whether the value is wrong, not its kind: a field of several kinds fails as all the others.

    Of 40 texts where 32 may be given, or tokens, it matters that there are 40, not that the first
    is no token.
    """
    kind = error["type"]
    if kind == "literal_error":
        return isinstance(error.get("input"), str | int | float)
    return not kind.endswith("_type")


def _expected(error: Mapping[str, Any]) -> str:
    words = _EXPECTED.get(error["type"])
    if words is None:  # a kind that no field of ours has met yet
        return f"right ({error['msg']})"
    return words.format(**error.get("ctx", {}))


def _explain_tag(error: Mapping[str, Any], param: str | None) -> tuple[str, str | None]:
    field = str(error["ctx"]["discriminator"]).strip("'")
    if field.endswith("()"):  # a function that reads the type
        field = "type"
    path = f"{param}.{field}" if param else field
    allowed = error["ctx"].get("expected_tags")
    if not allowed:
        return f"{path} must be given.", path
    return f"{path} must be one of {allowed}, got {error['ctx'].get('tag')!r}.", path


def _explain_length(error: Mapping[str, Any], param: str | None) -> str:
    limits = error.get("ctx", {})
    name, given = param or "The body", limits.get("actual_length")
    if limits.get("max_length") == 0:
        return f"{name} must be empty or absent."
    most, least = limits.get("max_length"), limits.get("min_length")
    words = f"at most {most}" if error["type"] == "too_long" else f"at least {least}"
    got = f", got {given}" if given is not None else ""
    return f"{name} must have {words} {'entry' if least == 1 else 'entries'}{got}."


def _shown(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _path(error: Mapping[str, Any], body: Any) -> str | None:
    """("body", "messages", 0, "user", "content", "str") -> "messages[0].content".

    A location also names the members of unions that were tried; what the body holds tells them
    from fields.
    """
    path = ""
    location = error["loc"][1:]
    for at, part in enumerate(location, 1):
        if isinstance(part, int):
            if not isinstance(body, list):
                break
            path += f"[{part}]"
            body = body[part] if part < len(body) else None
        elif isinstance(body, dict) and (
            part in body or (at == len(location) and error["type"] == "missing")
        ):
            short = part if len(part) <= _LONGEST_SHOWN else f"{part[: _LONGEST_SHOWN - 3]}..."
            path += f".{short}" if path else short
            body = body.get(part)
    return path or None
