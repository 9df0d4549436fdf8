"""Tools in Mistral's format: [TOOL_CALLS] and a JSON list of calls behind it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nemo_trt.engines.generation import Constraint
from nemo_trt.errors import RequestError

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def calls_schema(functions: Mapping[str, Mapping[str, Any]], *, several: bool) -> dict[str, Any]:
    """The JSON schema of a list of calls.

    Args:
        functions: name -> JSON schema of the arguments. References within it stay its own: each
            schema becomes a definition of the whole.
        several: whether one answer may hold more than one call.
    """
    definitions = {
        f"tool{at}": _moved(dict(schema) or _NO_PARAMETERS, f"#/$defs/tool{at}")
        for at, schema in enumerate(functions.values())
    }
    items = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": {"$ref": f"#/$defs/tool{at}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, name in enumerate(functions)
    ]
    limit = {} if several else {"maxItems": 1}
    return {
        "type": "array",
        "minItems": 1,
        **limit,
        "items": {"anyOf": items},
        "$defs": definitions,
    }


class ToolConstraint:
    """An answer that may, or must, call tools. See `nemo_trt.engines.generation.Constraint`.

    Args:
        trigger: the token [TOOL_CALLS].
        vocab_size: V.
        choice: "auto": text, or calls at the beginning of the answer or behind some free text;
            "required": calls alone.
        calls: what may stand behind the trigger.
        text: what the text may be, where it is not free.
    """

    def __init__(
        self,
        trigger: int,
        vocab_size: int,
        *,
        choice: Literal["auto", "required"],
        calls: Constraint,
        text: Constraint | None = None,
    ) -> None:
        self.trigger, self.vocab_size, self.choice = trigger, vocab_size, choice
        self.calls, self.text = calls, text
        self._calling, self._started = False, False

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may come."""
        if self._calling:
            return self.calls.finished
        return self.text is not None and self.text.finished

    def allowed(self) -> NDArray[np.bool_] | None:
        """(V,) tokens that may come next; None where all may."""
        if self._calling:
            return self.calls.allowed()
        if self.choice == "required":
            mask = np.zeros(self.vocab_size, np.bool_)
        else:
            found = self.text.allowed() if self.text else None
            if found is None or self._started:
                return found
            mask = found.copy()
        mask[self.trigger] = True
        return mask

    def accept(self, token_id: int) -> None:
        """The answer goes on with a token that was allowed."""
        if self._calling:
            self.calls.accept(token_id)
        elif token_id == self.trigger:
            self._calling = True
        elif self.text:
            self.text.accept(token_id)
        self._started = True


def require_tools(trigger: int | None, functions: Sequence[str]) -> int:
    """The token that begins calls.

    Raises:
        RequestError: the model's tokenizer has none.
    """
    if trigger is None:
        raise RequestError(
            f"tools must be absent, got {', '.join(functions)}: this model's tokenizer has no "
            "[TOOL_CALLS] token."
        )
    return trigger


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to its own root, "#...", point to where it stands now."""
    if isinstance(schema, dict):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    if isinstance(schema, list):
        return [_moved(value, place) for value in schema]
    return schema
