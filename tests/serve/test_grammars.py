"""Constraints over real vocabularies: what they let through is what the grammar means."""

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from nemo_trt.engines.tokenizers import Tokenizer, open_tokenizer
from nemo_trt.errors import RequestError
from nemo_trt.export.checkpoints.tokenizer_files import tekken_of_mistral_common
from nemo_trt.serve.grammars import GrammarConstraint, Grammars, VocabularyGrammars

pytestmark = pytest.mark.unit

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["tekken", "huggingface"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "tekken":
        folder = tmp_path_factory.mktemp("tekken")
        (folder / "tekken.json").write_bytes(tekken_of_mistral_common().read_bytes())
        return open_tokenizer(folder)
    return open_tokenizer(request.getfixturevalue("sample_tokenizer"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    # Logits may be wider than the vocabulary.
    return VocabularyGrammars(tokenizer, tokenizer.vocab_size + 64, tokenizer.eos_ids)


def follows(constraint: GrammarConstraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is let through whole, token by token."""
    for token in tokenizer.encode(text, bos=False):
        if not constraint.allowed()[token]:
            return False
        constraint.accept(token)
    return constraint.finished or bool(constraint.allowed()[tokenizer.eos_ids[0]])


def wander(constraint: GrammarConstraint, tokenizer: Tokenizer, seed: int) -> str:
    """A text of tokens drawn blindly from what is allowed; ends when it may."""
    random = np.random.default_rng(seed)
    ids: list[int] = []
    for _ in range(400):
        if constraint.finished:
            break
        allowed = np.flatnonzero(constraint.allowed())
        ends = [token for token in tokenizer.eos_ids if token in allowed]
        if ends:
            break
        token = int(random.choice(allowed))
        constraint.accept(token)
        ids.append(token)
    return tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_drawn_follows_the_schema(
    grammars: Grammars, tokenizer: Tokenizer, seed: int
) -> None:
    text = wander(grammars.json_schema(PERSON), tokenizer, seed)
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"name": "Élodie", "age": 41, "tags": ["new", "old"]}', True),
        ('{"name":"x","age":0}', True),
        ('{\n    "name": "x",\n    "age": 1\n}', True),
        ('{"name": "x"}', False),
        ('{"name": "x", "age": 151}', False),
        ('{"name": "x", "age": 1, "other": 2}', False),
        ('{"name": "x", "age": 1, "tags": ["lent"]}', False),
        ('{\n\n\n"name": "x", "age": 1}', False),  # white space does not run away
        ('[{"name": "x", "age": 1}]', False),
    ],
)
def test_documents_pass_as_the_schema_says(
    grammars: Grammars, tokenizer: Tokenizer, text: str, right: bool
) -> None:
    assert follows(grammars.json_schema(PERSON), tokenizer, text) == right


def test_any_object_is_an_object(grammars: Grammars, tokenizer: Tokenizer) -> None:
    assert follows(grammars.json_object(), tokenizer, '{"a": [1, {"b": null}]}')
    assert not follows(grammars.json_object(), tokenizer, "[1]")


@pytest.mark.parametrize("seed", range(3))
def test_a_regular_expression_matches_what_is_drawn(
    grammars: Grammars, tokenizer: Tokenizer, seed: int
) -> None:
    pattern = "[a-c]{2,5}-(x|yy)[0-9]"
    assert re.fullmatch(pattern, wander(grammars.regex(pattern), tokenizer, seed))


def test_a_grammar_that_counts(grammars: Grammars, tokenizer: Tokenizer) -> None:
    nested = 'start: "(" start ")" | "x"'
    assert follows(grammars.lark(nested), tokenizer, "(((x)))")
    assert not follows(grammars.lark(nested), tokenizer, "((x)))")


def test_special_tokens_and_tokens_that_do_not_exist_are_never_allowed(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    mask = grammars.regex(".*").allowed()
    assert len(mask) == tokenizer.vocab_size + 64
    assert not mask[tokenizer.vocab_size :].any()
    special = [t for t in range(tokenizer.vocab_size) if not tokenizer.token_bytes(t)]
    assert {int(token) for token in special if mask[token]} <= set(tokenizer.eos_ids)


@pytest.mark.parametrize("ends", [(), (0,), (0, 2)])
def test_a_grammar_ends_with_each_end_token_of_the_model_and_without_any(
    tokenizer: Tokenizer, ends: tuple[int, ...]
) -> None:
    size = tokenizer.vocab_size
    grammars = VocabularyGrammars(tokenizer, size, ends)
    digits = grammars.regex("[0-9]+")
    for token in tokenizer.encode("12", bos=False):
        digits.accept(token)
    allowed = {int(token) for token in np.flatnonzero(digits.allowed())}
    assert {token for token in allowed if not tokenizer.token_bytes(token)} == set(ends)
    for whole, text in ((grammars.json_object(), '{"a": 1}'), (grammars.regex("a|bc"), "bc")):
        for token in tokenizer.encode(text, bos=False):
            assert whole.allowed()[token]
            whole.accept(token)
        assert whole.finished or {int(t) for t in np.flatnonzero(whole.allowed())} == set(ends)
        assert whole.finished or ends  # else nothing could follow


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: g.json_schema({"type": "nothing"}), "JSON schema"),
        (lambda g: g.json_schema({"$ref": "#/nowhere"}), "JSON schema"),
        (lambda g: g.json_schema({"not": {"type": "string"}}), "JSON schema"),
        (lambda g: g.json_schema({"x-guidance": {"lenient": True}, "not": {}}), "JSON schema"),
        (lambda g: g.json_schema({"default": float}), "must be JSON"),
        (lambda g: g.regex("(("), "regular expression"),
        (lambda g: g.lark("begin: 1"), "grammar"),
    ],
)
def test_what_cannot_be_enforced_is_refused(grammars: Grammars, make: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        make(grammars)
