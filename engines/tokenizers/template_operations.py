"""Operators, filters, tests and calls of a template, each counted before it is done."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Any

from jinja2.runtime import Macro
from jinja2.utils import generate_lorem_ipsum

from nemo_trt.errors import RequestError

from .template_budget import ENTRY, MOST_BITS, STEP, active

OPERATORS = frozenset({"+", "-", "*", "/", "//", "%", "**"})

_APPLY, _CALL = 3 * STEP, 10 * STEP
_MOST_WIDTH = 10_000
_MOST_RARE = 2**16
_RARE_NUMBER = 1000

# Filters that pass on what they are given, or make lists of it.
_PASSING = frozenset(
    [
        "default",
        "d",
        "first",
        "last",
        "random",
        "attr",
        "length",
        "count",
        "map",
        "select",
        "selectattr",
        "reject",
        "rejectattr",
    ]
)
_LISTING = frozenset({"list", "items", "reverse", "batch", "slice"})
_ESCAPING = dict.fromkeys(("e", "escape", "forceescape"), 6) | {"urlencode": 12}
# Filters that read their value once or a few times, whatever it is.
_LINEAR = frozenset(
    [
        "abs",
        "capitalize",
        "dictsort",
        "float",
        "groupby",
        "int",
        "lower",
        "max",
        "min",
        "safe",
        "sort",
        "string",
        "title",
        "trim",
        "unique",
        "upper",
    ]
)
_WIDE = frozenset({"center", "round"})  # their numbers are widths and digits
_CHEAP_TESTS = frozenset(
    [
        "boolean",
        "callable",
        "defined",
        "false",
        "float",
        "integer",
        "iterable",
        "mapping",
        "none",
        "number",
        "sameas",
        "sequence",
        "string",
        "test",
        "filter",
        "true",
        "undefined",
        "escaped",
    ]
)
_LINEAR_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "rfind",
        "rindex",
        "rpartition",
        "rstrip",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
    ]
)
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})
_DIGITS = re.compile(r"\d+")


def operate(operator: str, left: Any, right: Any, apply: Callable[[Any, Any], Any]) -> Any:
    """Apply a binary operator, unless its result would be too large."""
    budget = active()
    budget.charge(STEP)
    if operator == "**":
        _require_small_power(left, right)
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(value, int | float):
                budget.copy(budget.size(value) * max(times, 0))
    elif operator == "%" and isinstance(left, str | bytes):
        _charge_format(left, right)
    elif operator == "+" and isinstance(left, str | bytes | list | tuple):
        budget.copy(len(left) + (len(right) if isinstance(right, type(left)) else 0))
        if isinstance(left, str):
            return left + right
    return budget.made(apply(left, right))


def counted_filter(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is counted before it is done."""
    skipped = 1 if hasattr(apply, "jinja_pass_arg") else 0  # its context, or the like

    @functools.wraps(apply)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = active()
        budget.charge(_APPLY)
        value, *given = args[skipped:] or (None,)
        if name not in _PASSING:
            value = _at_once(value)
        _prepare_filter(name, value, given, kwargs)
        result = apply(*args[:skipped], value, *given, **kwargs)
        if name in ("batch", "slice"):
            result = list(result)
        return result if name in _PASSING else budget.made(result)

    return counted


def counted_test(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A test that is counted before it is done."""
    skipped = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @functools.wraps(apply)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = active()
        budget.charge(_APPLY)
        if name not in _CHEAP_TESTS:
            budget.copy(budget.size([*args[skipped:], *kwargs.values()]))
        return apply(*args, **kwargs)

    return counted


def call(run: Callable[[], Any], target: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """Call what a template calls: a macro, a function, or a method of a value."""
    budget = active()
    budget.charge(_CALL)
    if isinstance(target, Macro):
        if target.catch_varargs or target.catch_kwargs:  # they become a tuple and a dict
            budget.size([args, {name: one for name, one in kwargs.items() if name[0] != "_"}])
        return run()
    given = [*args, *(one for name, one in kwargs.items() if name[0] != "_")]
    if any(isinstance(one, Iterator) for one in given):
        raise RequestError("The chat template must make a list of what a filter gives, to pass it.")
    method = getattr(target, "__wrapped__", target)  # Jinja wraps str.format
    owner = getattr(method, "__self__", None)
    name = getattr(method, "__name__", "")
    if target is generate_lorem_ipsum:
        _require_rare(given)
    elif isinstance(owner, str):
        _prepare_method(owner, name, given)
    elif isinstance(owner, bytes):
        if name != "decode":
            raise RequestError(f"The chat template must not call {name} of bytes.")
        _require_rare([owner, *given])
    elif isinstance(owner, list | tuple):
        budget.copy(budget.size([owner, *given]))
    elif isinstance(owner, Mapping) and name in ("get", "items", "keys", "values", "copy"):
        budget.size(given)
    elif isinstance(owner, int | float):
        _require_small_numbers(given)
        budget.copy(budget.size(given))
    else:
        budget.copy(budget.size(given))
    return budget.made(run())


def _at_once(value: Any) -> Any:
    """What a filter gives bit by bit, as a list that can be measured."""
    if not isinstance(value, Iterator):
        return value
    budget = active()
    entries = []
    for entry in value:
        budget.charge(ENTRY)
        entries.append(entry)
    return budget.made(entries)


def _prepare_filter(name: str, value: Any, given: list[Any], named: Mapping[str, Any]) -> None:
    budget = active()
    both = [*given, *named.values()]
    if name in _PASSING:
        budget.size([one for one in both if not isinstance(one, str)])
    elif name in _LISTING:
        if isinstance(value, str | bytes):
            budget.charge(ENTRY * len(value))
        _require_small_numbers(both, _MOST_WIDTH)
        budget.size(both)
    elif name in _ESCAPING:
        budget.copy(_ESCAPING[name] * budget.size(value))
    elif name in _LINEAR:
        budget.copy(budget.size([value, *both]))
    elif name in _WIDE:
        _require_small_numbers(both, _MOST_WIDTH if name == "center" else 300)
        budget.copy(budget.size(value))
    elif name == "tojson":
        _charge_json(value, given, named)
    elif name == "indent":
        _charge_indent(str_of(value), both)
    elif name == "replace":
        _charge_replace(str_of(value), both)
    elif name == "join":
        separator = given[0] if given else named.get("d", "")
        length = len(value) if hasattr(value, "__len__") else 0
        budget.copy(budget.size(value) + budget.size(separator) * length)
    elif name == "format":
        _charge_format(str_of(value), (*given, *named.values()))
    elif name == "sum":
        start = given[1] if len(given) > 1 else named.get("start", 0)
        if not isinstance(start, int | float):
            raise RequestError("The chat template must sum numbers alone.")
        budget.copy(budget.size(value))
    else:  # rare, and slow on a long text
        _require_rare([value, *both])


def _prepare_method(text: str, name: str, given: list[Any]) -> None:
    """Methods of a text."""
    budget = active()
    budget.copy(len(text) + budget.size(given))
    if name in ("split", "rsplit"):
        separator = given[0] if given and isinstance(given[0], str) and given[0] else None
        parts = text.count(separator) + 1 if separator else len(text) // 2 + 1
        budget.charge(ENTRY * parts)
    elif name == "splitlines":
        budget.charge(ENTRY * (len(text) + 1))
    elif name == "replace":
        _charge_replace(text, given)
    elif name == "join":
        entries = given[0] if given else ()
        budget.copy(len(text) * (len(entries) if hasattr(entries, "__len__") else 0))
    elif name in _PADDING_METHODS:
        _require_small_numbers(given, _MOST_WIDTH)
    elif name == "format":
        if any("{" in (spec or "") for _, _, spec, _ in Formatter().parse(text)):
            raise RequestError("The chat template must not nest fields of a format.")
        _charge_format(text, given)
    elif name == "encode":
        _require_rare([text, *given])
    elif name == "expandtabs":
        _require_small_numbers(given, _RARE_NUMBER)
        budget.copy(_RARE_NUMBER * text.count("\t"))
    elif name not in _LINEAR_METHODS:
        raise RequestError(f"The chat template must not call {name} of a text.")


def str_of(value: Any) -> str:
    """The text of a value that was measured."""
    budget = active()
    budget.copy(budget.size(value))
    return value if isinstance(value, str) else str(value)


def _charge_replace(text: str, given: list[Any]) -> None:
    old, new = (str_of(one) for one in (*given, "", "")[:2])
    active().copy((text.count(old) if old else len(text) + 1) * len(new) + len(text))


def _charge_indent(text: str, given: list[Any]) -> None:
    width: Any = given[0] if given else 4
    _require_small_numbers(given, _MOST_WIDTH)
    per_line = len(width) if isinstance(width, str) else int(width)
    active().copy((text.count("\n") + 2) * per_line + ENTRY * text.count("\n"))


def _charge_json(value: Any, given: list[Any], named: Mapping[str, Any]) -> None:
    budget = active()
    indent: Any = given[1] if len(given) > 1 else named.get("indent")
    _require_small_numbers([*given, *named.values()], _RARE_NUMBER)
    per_level = len(indent) if isinstance(indent, str) else int(indent or 0)
    separators: Any = given[2] if len(given) > 2 else named.get("separators")
    wide = budget.size(separators) if separators else 0
    # \u00e9 for a letter
    budget.copy(6 * budget.size(value, per_level) if wide <= 8 * ENTRY else 2**62)


def _charge_format(text: str | bytes, values: Any) -> None:
    """Of "%5s" and of "{:5}": widths are bounded, and each value may be shown again and again."""
    budget = active()
    shown = text if isinstance(text, str) else text.decode("latin-1")
    if any(len(run) > 4 for run in _DIGITS.findall(shown)):
        raise RequestError(f"Widths in the chat template must be at most {_MOST_WIDTH}.")
    if "*" in shown:
        _require_small_numbers(values, _MOST_WIDTH)
    fields = shown.count("%") + shown.count("{")
    budget.copy(len(shown) + fields * (budget.size(values) + _RARE_NUMBER))


def _require_small_power(left: Any, right: Any) -> None:
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and right > 0
        and left.bit_length() * right > MOST_BITS
    ):
        raise RequestError(f"Numbers of the chat template must have at most {MOST_BITS} bits.")


def _require_small_numbers(given: Any, most: int = _RARE_NUMBER) -> None:
    for one in given if isinstance(given, list | tuple) else [given]:
        if isinstance(one, int) and abs(one) > most:
            raise RequestError(
                f"Widths and counts in the chat template must be at most {most}, got {one}."
            )


def _require_rare(values: list[Any]) -> None:
    """What chat templates hardly ever use, on short texts alone."""
    budget = active()
    _require_small_numbers(values)
    size = budget.size(values)
    if size > _MOST_RARE:
        raise RequestError(
            f"The chat template uses on {size} characters what it may use on {_MOST_RARE} at most."
        )
    budget.copy(STEP * 100 + size)
