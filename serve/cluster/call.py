"""One HTTP request on its way from the ingress to a replica, and back."""

from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Scope

_PASSED = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "root_path",
    "query_string",
    "headers",
    "client",
    "server",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose body is there whole.

    Attributes:
        scope: ASGI's, without what belongs to the process that took the request in.
        keys: see `prefix_keys`; for the router.
    """

    scope: dict[str, Any]
    body: bytes
    keys: tuple[int, ...] = ()


def passed_scope(scope: Scope, request_id: str) -> dict[str, Any]:
    """What of a scope goes to the replica: the request keeps its id there, but not its key."""
    passed = {name: scope[name] for name in _PASSED if name in scope}
    left_out = (b"x-request-id", b"authorization", b"x-api-key")
    headers = [(name, value) for name, value in scope["headers"] if name not in left_out]
    passed["headers"] = [*headers, (b"x-request-id", request_id.encode())]
    return passed


def is_event_stream(start: Message) -> bool:
    """Whether an answer that starts so consists of server-sent events."""
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )


def is_last(message: Message) -> bool:
    """Whether an answer ends with this message."""
    return message["type"] == "http.response.body" and not message.get("more_body", False)
