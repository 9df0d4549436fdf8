"""Chat templates of a checkpoint: conversations as text, as transformers renders them."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_trt.errors import RequestError
from nemo_trt.shown import said, shown

from .settings import DEFAULT, WITH_TOOLS
from .template_budget import Budget, spending

_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message")
_MOST_CHARACTERS = 2**18
# Names of what a model thought before it answered; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MARK = "CONTINUE-FROM-HERE-7d41c6 "  # the space at its end shows whether a template trims


class ChatTemplates:
    """The templates of one tokenizer. None of them is compiled before it is used.

    Args:
        templates: by name; "default" and "tool_use" are chosen as transformers does.
        named_tokens: variables of every template, such as "bos_token".
    """

    def __init__(self, templates: Mapping[str, str], named_tokens: Mapping[str, str]) -> None:
        self._sources = dict(templates)
        self._named_tokens = dict(named_tokens)
        self._compiled: dict[str, Any] = {}
        self._compiling = threading.Lock()

    def require_usable(self) -> None:
        """Compile every template.

        Raises:
            RequestError: one cannot be compiled.
        """
        for name in self._sources:
            self._template(name)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None,
        *,
        continue_final: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            continue_final: the text ends with the last message's, for the answer to go on.
            variables: more variables of the template; "chat_template" names one of several.

        Raises:
            RequestError: there is no template, it cannot be compiled, it refuses the conversation,
                or rendering it costs too much.
        """
        given = dict(variables or {})
        template = self._template(self._chosen(given.pop("chat_template", None), bool(tools)))
        if taken := [name for name in _RESERVED if name in given]:
            raise RequestError(f"chat_template_kwargs must not hold {taken[0]}: it has its field.")
        turns = [_turn(message) for message in messages]
        if continue_final:
            turns[-1], final = _marked(turns[-1])
        text = _rendered(
            template,
            {
                "documents": None,
                **self._named_tokens,
                **given,
                "messages": turns,
                "tools": [dict(tool) for tool in tools] if tools else None,
                "add_generation_prompt": not continue_final,
            },
        )
        return _cut(text, final) if continue_final else text

    def _chosen(self, name: object, with_tools: bool) -> str:
        """The name of the template to use."""
        if not self._sources:
            raise RequestError(
                "This bundle's tokenizer has no chat template. Use `run`, or add the template to "
                "the checkpoint and export again."
            )
        if name is None and with_tools and WITH_TOOLS in self._sources:
            return WITH_TOOLS
        chosen = DEFAULT if name is None else name
        if not isinstance(chosen, str) or chosen not in self._sources:
            known = ", ".join(shown(one) for one in sorted(self._sources)[:20])
            raise RequestError(
                f"chat_template must name one of this tokenizer's templates, {known}, got "
                f"{shown(chosen)}."
            )
        return chosen

    def _template(self, name: str) -> Any:
        with self._compiling:
            if name not in self._compiled:
                self._compiled[name] = _compile(self._sources[name])
            return self._compiled[name]


def _compile(source: str) -> Any:
    from .template_sandbox import TemplateSandbox

    if len(source) > _MOST_CHARACTERS:
        raise RequestError(
            f"The chat template must have at most {_MOST_CHARACTERS} characters, got {len(source)}."
        )
    try:
        return TemplateSandbox().from_string(source)
    except Exception as error:  # of Jinja, or of the Python compiler behind it
        raise RequestError(
            f"The chat template must be valid Jinja: {said(error)}. Correct it in the "
            "checkpoint and export again; prompts without it (`run`) work."
        ) from error


def _rendered(template: Any, values: Mapping[str, object]) -> str:
    try:
        with spending(Budget(values)):
            return str(template.render(values))
    except RequestError:
        raise
    except Exception as error:  # a template is a program, and may raise whatever Python raises
        raise RequestError(f"The chat template refuses the conversation: {said(error)}") from error


def _turn(message: Mapping[str, object]) -> dict[str, Any]:
    """A message as templates see it: nothing that is None, and thoughts under the usual names."""
    turn = {name: value for name, value in message.items() if value is not None}
    thought = next((turn[name] for name in _REASONING if name in turn), None)
    return turn if thought is None else {"thinking": thought, **turn, _REASONING[0]: thought}


def _marked(turn: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The last turn with a mark at the end of its text, and the text."""
    content = turn.get("content", "")
    if not isinstance(content, list):
        return {**turn, "content": f"{content}{_MARK}"}, str(content)
    pieces = [dict(piece) for piece in content]
    for piece in reversed(pieces):
        if isinstance(text := piece.get("text"), str):
            piece["text"] = text + _MARK
            return {**turn, "content": pieces}, text
    raise RequestError("The last message must have a text that the answer can go on with.")


def _cut(text: str, final: str) -> str:
    """What stands before the mark; white space before it goes where the template trims."""
    mark = _MARK.strip()
    if text.count(mark) != 1 or final.strip() not in text:
        raise RequestError(
            "The last message must be shown once by the chat template, and as it is, for its text "
            "to be continued."
        )
    before, _, after = text.partition(mark)
    return before if after.startswith(" ") else before.rstrip()
