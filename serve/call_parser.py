"""Reads calls of tools as the model writes them: a JSON list, a few characters at a time."""

from dataclasses import dataclass, field
from json import JSONDecodeError, loads
from typing import Literal

_State = Literal["list", "object", "key", "colon", "value", "after", "end"]


@dataclass(slots=True, kw_only=True)
class CallDelta:
    """News of one call.

    Attributes:
        index: of the call in the list.
        name: of the function, with the call's first news alone.
        arguments: JSON that follows what came before.
    """

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class _Value:
    """A JSON value that is being read."""

    text: str = ""
    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def push(self, character: str) -> bool:
        """Take a character; whether the value is complete with it."""
        self.text += character
        if self.in_string:
            if self.escaped:
                self.escaped = False
            elif character == "\\":
                self.escaped = True
            elif character == '"':
                self.in_string = False
                return self.depth == 0
            return False
        if character == '"':
            self.in_string = True
        elif character in "{[":
            self.depth += 1
        elif character in "}]":
            self.depth -= 1
            return self.depth == 0
        return False

    def ends_before(self, character: str) -> bool:
        """Whether a number or a word ends where this character begins."""
        return self.depth == 0 and not self.in_string and character in ",}] \t\n"


@dataclass(slots=True)
class CallParser:
    """Takes `[{"name": "f", "arguments": {...}}, ...]` piece by piece; a grammar has checked it.

    Attributes:
        complete: the list has ended.
    """

    complete: bool = False
    _index: int = -1
    _state: _State = "list"
    _key: str = ""
    _named: bool = False
    _value: _Value = field(default_factory=_Value)

    def push(self, text: str) -> list[CallDelta]:
        """The news in a piece of text."""
        news: list[CallDelta] = []
        for character in text:
            self._take(character, news)
        return news

    def _take(self, character: str, news: list[CallDelta]) -> None:
        if self._state == "value":
            if self._value.text and self._value.ends_before(character):
                self._finish_value(news)  # and the character is read below
            else:
                if self._key == "arguments" and (self._value.text or not character.isspace()):
                    self._emit(news, character)
                if self._value.text or not character.isspace():
                    done = self._value.push(character)
                    if done:
                        self._finish_value(news)
                return
        if character.isspace():
            return
        if self._state == "list":
            if character == "{":
                self._index += 1
                self._state, self._named = "object", False
            elif character == "]":
                self._state, self.complete = "end", True
        elif self._state in ("object", "key"):
            if self._state == "object" and character == "}":
                self._state = "list"
                return
            if self._state == "object":
                self._value, self._state = _Value(), "key"
            if self._value.push(character):
                self._key, self._state = _string(self._value.text), "colon"
        elif self._state == "colon":
            self._value, self._state = _Value(), "value"
        elif self._state == "after":
            self._state = "list" if character == "}" else "object"

    def _finish_value(self, news: list[CallDelta]) -> None:
        if self._key == "name" and not self._named:
            self._named = True
            news.append(CallDelta(index=self._index, name=_string(self._value.text)))
        self._state = "after"

    def _emit(self, news: list[CallDelta], character: str) -> None:
        if news and news[-1].index == self._index:
            news[-1].arguments += character
        else:
            news.append(CallDelta(index=self._index, arguments=character))


def _string(text: str) -> str:
    try:
        return str(loads(text))
    except JSONDecodeError:
        return text.strip('"')
