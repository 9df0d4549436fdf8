"""Errors in Anthropic's form, for its routes: {"type": "error", "error": {"type", "message"}}."""

from typing import Any, Literal

from pydantic import BaseModel

PATH = "/v1/messages"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Status -> type; of others below 500 "invalid_request_error", else "api_error"."""


class AnthropicDetail(BaseModel):
    """What went wrong; the message begins with the field, where it is one's fault."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The body of every answer that is an error, and of an error in the middle of a stream."""

    type: Literal["error"]
    error: AnthropicDetail


def anthropic_body(body: dict[str, Any], status: int) -> dict[str, Any]:
    """OpenAI's error body in Anthropic's form, which has no `param`."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}
