"""`response_format`, or vLLM's names for it, as a constraint on the answer."""

from nemo_trt.serve.grammars import Grammar, Grammars

from .errors import naming
from .format_schema import (
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
)


def format_constraint(
    wanted: tuple[str, ResponseFormat] | None, grammars: Grammars
) -> Grammar | None:
    """The constraint of all answers, each of which takes a fresh one; None: the text is free.

    Args:
        wanted: the field that says it, and what it says.

    Raises:
        ApiError: a schema, expression or grammar is wrong or cannot be enforced.
    """
    if wanted is None:
        return None
    param, form = wanted
    with naming(param):
        match form:
            case JsonObjectFormat():
                return grammars.json_object()
            case JsonSchemaFormat():
                return grammars.json_schema(form.json_schema.schema_)
            case RegexFormat():
                return grammars.regex(form.regex)
            case GrammarFormat():
                return grammars.lark(form.grammar)
    return None
