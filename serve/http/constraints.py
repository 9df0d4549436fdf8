"""`response_format` as a constraint on the answer."""

from nemo_trt.engines.generation import Constraint
from nemo_trt.serve.grammars import Grammars

from .errors import naming
from .schema import (
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
)


def format_constraint(wanted: ResponseFormat | None, grammars: Grammars) -> Constraint | None:
    """The constraint of one answer; None where the text is free.

    Raises:
        ApiError: a schema, expression or grammar is wrong or cannot be enforced.
    """
    with naming("response_format"):
        match wanted:
            case JsonObjectFormat():
                return grammars.json_object()
            case JsonSchemaFormat():
                return grammars.json_schema(wanted.json_schema.schema_)
            case RegexFormat():
                return grammars.regex(wanted.regex)
            case GrammarFormat():
                return grammars.lark(wanted.grammar)
    return None
