"""Every name of TensorRT and CUDA that the runtime's borders use exists where it is looked up.

Nothing here runs without a GPU, so a name that an upgrade took away would be found in production.
"""

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from nemo_trt.engines import device
from nemo_trt.engines.trt import compile, network, piece, runtime, runtime_cache, toolkit
from nemo_trt.engines.trt.attention import driver, plugin

pytestmark = pytest.mark.e2e

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
cuda = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")

OBJECTS = {
    "self._runtime": trt.Runtime,
    "self._engine": trt.ICudaEngine,
    "config": trt.IRuntimeConfig,
    "context": trt.IExecutionContext,
    "self._context": trt.IExecutionContext,
}
"""Expression in runtime.py -> the type of what it holds."""
OPTIONAL = {"is_stream_capturable", runtime.SPECIALIZATION}
"""Of TensorRT-RTX alone; looked up by their text."""


def chains(module: ModuleType) -> Iterator[list[str]]:
    """Every `a.b.c` of a module, as a list of names; the longest of each."""
    tree = ast.parse(inspect.getsource(module))
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            yield ast.unparse(node).split(".")


def missing(found: Any, names: list[str]) -> str | None:
    """The first of `names`, one in the other, that does not exist."""
    for name in names:
        if not hasattr(found, name):
            return f"{found} has no {name}"
        found = getattr(found, name)
    return None


@pytest.mark.parametrize("module", [compile, network, piece, plugin, runtime, toolkit])
def test_names_of_the_module_exist(module: ModuleType) -> None:
    used = [c[c.index(n) + 1 :] for c in chains(module) for n in ("api", "_api") if n in c]
    used = [names for names in used if names and names[0] != "__version__"]
    assert used, "the module uses TensorRT under another name: adapt this test"
    assert not [wrong for names in used if (wrong := missing(trt, names))]


@pytest.mark.parametrize("expression", OBJECTS)
def test_methods_of_the_runtime_exist(expression: str) -> None:
    prefix = expression.split(".")
    used = [c[len(prefix) :] for c in chains(runtime) if c[: len(prefix)] == prefix]
    used = [names[:1] for names in used if names]
    if expression == "context":  # the factory of our own contexts has the same name
        used = [names for names in used if names != ["context"]]
    assert used, "the runtime names its objects otherwise: adapt this test"
    assert not [wrong for names in used if (wrong := missing(OBJECTS[expression], names))]


@pytest.mark.parametrize(
    ("expression", "kind"), [("config", trt.IRuntimeConfig), ("self._cache", trt.IRuntimeCache)]
)
def test_methods_of_the_runtime_cache_exist(expression: str, kind: Any) -> None:
    prefix = expression.split(".")
    used = [c[len(prefix) :] for c in chains(runtime_cache) if c[: len(prefix)] == prefix]
    assert len([names for names in used if names]) == 2
    assert not [wrong for names in used if names and (wrong := missing(kind, names[:1]))]


def test_what_tensorrt_rtx_has_alone_exists_there() -> None:
    assert hasattr(trt.IExecutionContext, "is_stream_capturable")
    assert hasattr(getattr(trt, runtime.SPECIALIZATION), "EAGER")
    assert hasattr(trt.BuilderFlag, compile.USER_ALLOCATION)
    source = inspect.getsource(runtime)
    assert all(name in source for name in OPTIONAL)


def test_functions_and_constants_of_cuda_exist() -> None:
    tree = ast.parse(inspect.getsource(device))
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    used = {text for text in texts if isinstance(text, str) and text.isidentifier()}
    used = {text for text in used if text.startswith("cuda")}
    kinds = {text for text in used if text.startswith("cudaMemcpyHost") or "ToHost" in text}
    assert len(used - kinds) > 10 and len(kinds) == 2
    assert not [name for name in used - kinds if not hasattr(cuda, name)]
    assert not [name for name in kinds if not hasattr(cuda.cudaMemcpyKind, name)]
    enums = [c[1:] for c in chains(device) if c[0] == "attribute"]
    assert enums and not [n for n in enums if missing(cuda.cudaDeviceAttr, n)]
    modes = [c[2:] for c in chains(device) if c[:2] == ["self", "_cuda"]]
    assert modes and not [wrong for names in modes if names and (wrong := missing(cuda, names))]


def test_functions_of_cuda_take_as_many_arguments_as_they_are_given() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(device)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call"
    ]
    assert len(calls) > 20
    for call in calls:
        name = ast.literal_eval(call.args[0])
        taken = getattr(cuda, name).__doc__.splitlines()[0].split("(")[1].rstrip(")")
        wanted = [one for one in taken.split(",") if one.strip()]
        assert len(call.args) - 1 == len(wanted), f"{name}({taken})"


def test_functions_of_cudas_driver_exist_and_take_what_they_are_given() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(driver)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call"
    ]
    given = {ast.literal_eval(one.args[0]): len(one.args) - 1 for one in calls}
    given["cuLaunchKernel"] += 2  # the grid's three are one argument there
    assert len(given) == 5
    for name, count in given.items():
        signature = getattr(bindings, name).__doc__.splitlines()[0]
        assert signature.count(",") + 1 == count, signature
    assert hasattr(bindings, "cuGetErrorString")
    enums = [c[1:] for c in chains(driver) if c[0] == "attribute"]
    assert enums and not [n for n in enums if missing(bindings.CUfunction_attribute, n)]
