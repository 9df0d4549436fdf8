"""Time of a token mask over Tekken's 131072 tokens: llguidance against xgrammar.

python benchmarks/masks.py          (xgrammar is no dependency: pip install xgrammar)

Both follow the same documents token by token; the medians and worst times of one mask and the time
of compiling the grammar are of one run, libraries in turn.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nemo_trt.engines.tokenizers import Tokenizer, open_tokenizer
from nemo_trt.export.checkpoints.tokenizer_files import tekken_of_mistral_common
from nemo_trt.serve.grammars import VocabularyGrammars
from nemo_trt.serve.tools import calls_schema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.org$"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "lent"]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
            "required": ["street", "number"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "mail", "tags", "address"],
    "additionalProperties": False,
}
WORDS = [f"{first} {second}" for first in "abcdefghijklmnopqrst" for second in "uvwxyzabcdefghi"]
NESTED = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "below": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["text", "below"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TOOLS = calls_schema(
    {f"tool_{at}": PERSON["properties"]["address"] for at in range(20)}, several=True
)
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "a person": (
        PERSON,
        {
            "name": 'Élodie Østergård, called "Lo"',
            "age": 41,
            "mail": "elodie@example.org",
            "tags": ["new", "lent"],
            "address": {"street": "Quai de la Fosse, third floor on the left", "number": 12},
        },
    ),
    "any object": (
        {"type": "object"},
        {"a": [1, 2.5, None, {"b": "some words in a row", "c": True}], "d": "é" * 20},
    ),
    "a tree": (
        NESTED,
        {"text": "root", "below": [{"text": "leaf", "below": []} for _ in range(6)]},
    ),
    "one of 300 texts": ({"type": "string", "enum": WORDS}, WORDS[-1]),
    "calls of 20 tools": (
        TOOLS,
        [{"name": "tool_7", "arguments": {"street": "Rue Crébillon", "number": 3}}] * 2,
    ),
}
ROUNDS = 5
Step = Callable[[int], None]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tekken.json").write_bytes(tekken_of_mistral_common().read_bytes())
        tokenizer = open_tokenizer(Path(scratch))
    makers = {"llguidance": _llguidance(tokenizer), "xgrammar": _xgrammar(tokenizer)}
    for case, (schema, document) in CASES.items():
        ids = tokenizer.encode(json.dumps(document, ensure_ascii=False), bos=False)
        times: dict[str, dict[str, list[float]]] = {
            name: {"compile": [], "mask": []} for name in makers
        }
        for turn in range(ROUNDS):
            for name, make in makers.items():
                start = time.perf_counter()
                step = make({**schema, "title": f"turn {turn}"})  # no cache knows it
                times[name]["compile"].append(time.perf_counter() - start)
                for token in ids:
                    start = time.perf_counter()
                    step(token)
                    times[name]["mask"].append(time.perf_counter() - start)
        for name, found in times.items():
            print(
                f"{case:18} {name:11} compile {1e3 * statistics.median(found['compile']):7.2f} ms"
                f"   mask median {1e6 * statistics.median(found['mask']):4.0f} us, "
                f"worst {1e3 * max(found['mask']):.2f} ms"
            )


def _llguidance(tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Step]:
    grammars = VocabularyGrammars(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)

    def make(schema: dict[str, Any]) -> Step:
        constraint = grammars.json_schema(schema)

        def step(token: int) -> None:
            constraint.allowed()
            constraint.accept(token)

        return step

    return make


def _xgrammar(tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Step]:
    import xgrammar

    vocabulary = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    info = xgrammar.TokenizerInfo(
        vocabulary, vocab_size=tokenizer.vocab_size, stop_token_ids=list(tokenizer.eos_ids)
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=2)
    mask = np.empty((1, (tokenizer.vocab_size + 31) // 32), np.int32)

    def make(schema: dict[str, Any]) -> Step:
        matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(schema))

        def step(token: int) -> None:
            matcher.fill_next_token_bitmask(mask)
            np.unpackbits(mask.view(np.uint8), bitorder="little").view(bool)
            if not matcher.accept_token(token):
                raise ValueError("xgrammar refuses the document.")

        return step

    return make


if __name__ == "__main__":
    main()
