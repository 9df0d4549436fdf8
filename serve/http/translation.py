"""Requests to other APIs as requests to the chat API; errors in the words of the API asked."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import ApiError
from .validation import explain

Fields = Sequence[tuple[str, str]]
"""Names of the chat API and those that the client used."""
Entry = TypeVar("Entry")
Request = TypeVar("Request", bound=BaseModel)


def taken(entries: list[Entry]) -> Iterator[Entry]:
    """The entries of a list, which is emptied: a long one is not held twice."""
    entries.reverse()
    while entries:
        yield entries.pop()


def validated(model: type[Request], values: dict[str, Any], fields: Fields) -> Request:
    """A request of the chat API.

    Raises:
        ApiError: fields do not fit each other; it names the client's own.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        message, param = explain(found, values)
        raise renamed(ApiError(400, message, param=param), fields) from error


def renamed(error: ApiError, fields: Fields) -> ApiError:
    """An error that names the client's own fields, as its `param` and where its message begins."""
    detail = error.body["error"]
    param = detail["param"]
    for chat, ours in fields:
        if param is not None:
            param = param.replace(chat, ours)
    if param != detail["param"] and detail["message"].startswith(detail["param"]):
        detail["message"] = param + detail["message"][len(detail["param"]) :]
    detail["param"] = param
    return error
