"""Every name of TensorRT that our borders use is in the enterprise library's bindings, too.

They cannot be imported without the library itself, gigabytes that only a machine with a GPU has.
The bindings alone are one megabyte, in which every name of a class, method, attribute and enum
member stands as a text. That a method takes the same types as in TensorRT-RTX is not seen here.
"""

import importlib.util
import inspect
from pathlib import Path

import pytest

from nemo_trt.engines.trt import compile, grouped, network, piece, runtime, toolkit
from nemo_trt.engines.trt.attention import plugin

from .test_names import chains
from .test_signatures import ATTRIBUTES, CALLS

pytestmark = pytest.mark.e2e

MODULES = (compile, grouped, network, piece, plugin, runtime, toolkit)
RTX_ALONE = {
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "EAGER",
    "IRuntimeCache",
    "REQUIRE_USER_ALLOCATION",
    "create_runtime_cache",
    "deserialize",
    "dynamic_shapes_kernel_specialization_strategy",
    "is_stream_capturable",
    "num_compute_capabilities",
    "set_compute_capability",
    "set_runtime_cache",
}
"""Names of TensorRT-RTX, which are used only where the library has them, or is that one."""


def library() -> bytes:
    """The bindings' shared library. It is not loaded."""
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs tensorrt-cu13-bindings")
    (file,) = Path(found.submodule_search_locations[0]).glob("tensorrt.*so")
    return file.read_bytes()


def used() -> set[str]:
    """Names of TensorRT in our borders."""
    names = {part for name in (*CALLS, *ATTRIBUTES) for part in name.split(".")}
    for module in MODULES:
        for chain in chains(module):
            for root in ("api", "_api"):
                if root in chain:
                    names |= set(chain[chain.index(root) + 1 :])
    names |= {compile.USER_ALLOCATION, runtime.SPECIALIZATION, "EAGER"}
    return {name for name in names if name.isidentifier() and not name.startswith("__")}


def test_every_name_is_there_but_for_those_of_tensorrt_rtx() -> None:
    data = library()
    assert len(used()) > 100
    missing = {name for name in used() if f"{name}\0".encode() not in data}
    assert missing == RTX_ALONE


def test_names_of_tensorrt_rtx_alone_are_looked_up_before_they_are_used() -> None:
    source = inspect.getsource(runtime) + inspect.getsource(compile)
    for guard in (
        'hasattr(self._config, "create_runtime_cache")',
        "hasattr(self._api, SPECIALIZATION)",
        '"is_stream_capturable", None)',
        "hasattr(toolkit.api.BuilderFlag, USER_ALLOCATION)",
        "if toolkit.builds_without_gpu:",
    ):
        assert guard in source
