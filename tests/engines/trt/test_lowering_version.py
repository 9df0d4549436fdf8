"""An engine is kept while its inputs are unchanged: the code that makes it is one of them."""

import ast
import hashlib
import inspect
from types import ModuleType

import pytest

from nemo_trt.engines.trt import compile, grouped, lowering, network, profiles
from nemo_trt.engines.trt.attention import place
from nemo_trt.engines.trt.record import LOWERING_VERSION

pytestmark = pytest.mark.unit

CODE = {
    lowering: "d38d0dfa783185be",
    network: "d3d5454347bf4e07",
    place: "4a3cb41a53d8fd16",
    grouped: "2ea63a069c1e5f8b",
    profiles: "b0f44addceb06e5b",
    compile: "84664b9532d554e8",
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
    assert LOWERING_VERSION == 5
    assert digest_of(module) == CODE[module], (
        f"{module.__name__} has changed. If it builds other engines than before, raise "
        "LOWERING_VERSION in engines/trt/record.py; then write the new digest and version here."
    )
