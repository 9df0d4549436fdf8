"""An engine is kept while its inputs are unchanged: the code that makes it is one of them."""

import ast
import hashlib
import inspect
from types import ModuleType

import pytest

from nemo_trt.engines.trt import compile, grouped, lowering, network, profiles, stripped
from nemo_trt.engines.trt.attention import place
from nemo_trt.engines.trt.engine_record import LOWERING_VERSION
from nemo_trt.passes import (
    add_candidates,
    attend_in_fp16,
    fix_capacity,
    graph_pass,
    merge_products,
    scale_queries,
    weights,
)

pytestmark = pytest.mark.unit

CODE = {
    add_candidates: "8d1bf984a05fd8ec",
    attend_in_fp16: "54d2c4812a8c8995",
    lowering: "8a6d29442f540ac4",
    fix_capacity: "6d5d0d11ddf84d22",
    merge_products: "a36869b0a2a86eb5",
    scale_queries: "8f09e67d3954c775",
    graph_pass: "0a3ca7131c0c8040",
    weights: "a89ee2817e90b357",
    network: "46da6d3760f82ef5",
    place: "2eda4c4aa839431c",
    grouped: "2ea63a069c1e5f8b",
    profiles: "2b43dff4a477f0ad",
    compile: "4994e8c4564ddf2f",
    stripped: "2ee6d2ab5b4ed7e6",
}


def digest_of(module: ModuleType) -> str:
    """Of the lines of code: without comments, docstrings, empty lines and indentation."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            for index in range(text.lineno - 1, text.end_lineno or text.lineno):
                lines[index] = ""
    code = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


@pytest.mark.parametrize("module", CODE, ids=lambda module: module.__name__)
def test_code_that_decides_what_is_built_has_a_version(module: ModuleType) -> None:
    assert LOWERING_VERSION == 6
    assert digest_of(module) == CODE[module], (
        f"{module.__name__} has changed. If it builds other engines than before, raise "
        "LOWERING_VERSION in engines/trt/engine_record.py; then write the new digest and version "
        "here."
    )
