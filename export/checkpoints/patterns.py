"""Regular expressions that a file brings: how long matching one could take, before it is matched.

Python's matcher backtracks: for a text that does not match it goes every way in which the parts of
a pattern can share the text's characters. Those are counted here, as if every character matched.
"""

import importlib
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

_parser: Any = importlib.import_module("re._parser")  # as `re.compile` uses it
_ONE_CHARACTER = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}
_Ways = NDArray[np.floating[Any]]  # number of ways to match 0, 1, 2, ... characters


def num_paths(pattern: str, length: int) -> float:
    """The most ways that a matcher can go through a text of `length` characters.

    Raises:
        re.error: the pattern is none.
    """
    return _sequence(_parser.parse(pattern), length)[1]


def _sequence(parts: Any, length: int) -> tuple[_Ways, float]:
    """The ways to match one part after the other, and the most that are open at any of them."""
    ways, most = _only(0, length), 1.0
    for kind, argument in parts:
        of_part, most_of_part = _part(str(kind), argument, length)
        if most_of_part > of_part.sum():  # what looks ahead goes ways that it does not keep
            most = max(most, float(ways.sum()) * most_of_part)
        ways = np.convolve(ways, of_part)[: length + 1]
        most = max(most, float(ways.sum()))
    return ways, most


def _part(kind: str, argument: Any, length: int) -> tuple[_Ways, float]:
    if kind in _ONE_CHARACTER:
        return _only(1, length), 1.0
    if kind == "AT":
        return _only(0, length), 1.0
    if kind == "SUBPATTERN":
        return _sequence(argument[-1], length)
    if kind == "ATOMIC_GROUP":
        return _sequence(argument, length)
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _only(0, length), _sequence(argument[1], length)[1]
    if kind == "BRANCH":
        return _choice(argument[1], length)
    if kind in _REPEATS:
        least, most, body = argument
        return _repeat(least, most, body, length)
    if kind == "GROUPREF":  # of a length that is not known here
        return np.ones(length + 1), length + 1.0
    return np.ones(length + 1), np.inf  # GROUPREF_EXISTS, which no adapter needs


def _choice(branches: Any, length: int) -> tuple[_Ways, float]:
    """Of different names of one length a text can match only one; of other branches, all."""
    if all(str(kind) == "LITERAL" for branch in branches for kind, _ in branch):
        names = Counter("".join(chr(code) for _, code in branch).casefold() for branch in branches)
        ways = np.zeros(length + 1)
        for name, count in names.items():
            if len(name) <= length:
                ways[len(name)] = max(ways[len(name)], count)
        return ways, max(1.0, float(ways.sum()))
    found = [_sequence(branch, length) for branch in branches]
    return np.sum([ways for ways, _ in found], axis=0), sum(most for _, most in found)


def _repeat(least: int, most: int, body: Any, length: int) -> tuple[_Ways, float]:
    once, most_of_body = _sequence(body, length)
    if once[0] and most > length:  # many repeats of nothing
        return np.ones(length + 1), np.inf
    ways, power = np.zeros(length + 1), _only(0, length)
    for count in range(min(int(most), length) + 1):
        if count >= min(int(least), length):
            ways += power
        power = np.convolve(power, once)[: length + 1]
    return ways, max(1.0, float(ways.sum())) * most_of_body


def _only(count: int, length: int) -> _Ways:
    ways = np.zeros(length + 1)
    ways[count:][:1] = 1
    return ways
