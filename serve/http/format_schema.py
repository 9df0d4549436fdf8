"""What the text of an answer may be: OpenAI's `response_format` and vLLM's names for the same."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from .json_bounds import require_bounded
from .message_schema import Many, Name, Strict, Text, short, tagged

Pattern = Annotated[Text, Field(max_length=2**14), short(2**14)]
Grammar = Annotated[Text, Field(max_length=2**16), short(2**16)]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """A schema with its name. It is enforced, whether `strict` or not."""

    name: Name = ""
    description: Text = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class JsonSchemaFormat(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Strict):
    """Text that a regular expression matches."""

    type: Literal["regex"]
    regex: Pattern


class GrammarFormat(Strict):
    """Text of a context-free grammar in Lark's form."""

    type: Literal["grammar"]
    grammar: Grammar


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
    tagged("type"),
]

JsonText = dict[str, Any] | Grammar
Choices = Annotated[Many[Name], Field(min_length=1, max_length=1024)]


class StructuredOutputs(Strict):
    """vLLM's form: exactly one of its fields is given."""

    json_: JsonText | None = Field(default=None, alias="json")
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None


class GuidedFields(Strict):
    """vLLM's names for `response_format`, new and old. At most one of all may be given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonText | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    guided_decoding_backend: Name | None = None

    @property
    def format(self) -> tuple[str, ResponseFormat] | None:
        """The field that says what the text may be, and what it says.

        Raises:
            ValueError: several fields say it, or one is no JSON.
        """
        found: dict[str, ResponseFormat] = {}
        if self.response_format is not None:
            found["response_format"] = self.response_format
        given = self.structured_outputs or StructuredOutputs()
        for prefix, json_, regex, choice, grammar in (
            ("structured_outputs.", given.json_, given.regex, given.choice, given.grammar),
            (
                "guided_",
                self.guided_json,
                self.guided_regex,
                self.guided_choice,
                self.guided_grammar,
            ),
        ):
            if json_ is not None:
                found[f"{prefix}json"] = _schema_format(json_, f"{prefix}json")
            if regex is not None:
                found[f"{prefix}regex"] = RegexFormat(type="regex", regex=regex)
            if choice is not None:
                found[f"{prefix}choice"] = _choice_format(choice)
            if grammar is not None:
                found[f"{prefix}grammar"] = GrammarFormat(type="grammar", grammar=grammar)
        if given.json_object:
            found["structured_outputs.json_object"] = JsonObjectFormat(type="json_object")
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} must not be given together.")
        return next(iter(found.items()), None)


def _schema_format(given: JsonText, name: str) -> JsonSchemaFormat:
    if isinstance(given, str):
        require_bounded(given, name)
    try:
        schema = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"{name} must be a JSON schema: {error}.") from error
    if not isinstance(schema, dict):
        raise ValueError(f"{name} must be a JSON schema, got {str(given)[:80]!r}.")
    return JsonSchemaFormat(type="json_schema", json_schema=JsonSchema(schema=schema))


def _choice_format(choices: list[str]) -> GrammarFormat:
    rule = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return GrammarFormat(type="grammar", grammar=f"start: {rule}")
