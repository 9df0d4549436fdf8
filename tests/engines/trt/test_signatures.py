"""Every call of TensorRT that our borders make fits the signature of the installed library.

The bindings say it themselves: their docstrings begin with the types of arguments and answer.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest

from nemo_trt.engines.trt import (
    compile,
    grouped,
    network,
    piece,
    runtime,
    runtime_cache,
    toolkit,
)
from nemo_trt.engines.trt.attention import plugin

pytestmark = pytest.mark.e2e

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")

MODULES = (compile, grouped, network, piece, plugin, runtime, runtime_cache, toolkit)
CALLS = {
    "Builder": ["ILogger -> None"],
    "Builder.create_network": ["int -> INetworkDefinition"],
    "Builder.create_builder_config": ["-> IBuilderConfig"],
    "Builder.create_optimization_profile": ["-> IOptimizationProfile"],
    "Builder.build_serialized_network_to_stream": [
        "INetworkDefinition, IBuilderConfig, IStreamWriter -> bool"
    ],
    "IBuilderConfig.set_preview_feature": ["PreviewFeature, bool -> None"],
    "IBuilderConfig.create_timing_cache": ["bytes -> ITimingCache"],
    "IBuilderConfig.set_timing_cache": ["ITimingCache, bool -> bool"],
    "IBuilderConfig.get_timing_cache": ["-> ITimingCache"],
    "ITimingCache.serialize": ["-> IHostMemory"],
    "IBuilderConfig.add_optimization_profile": ["IOptimizationProfile -> int"],
    "IBuilderConfig.set_flag": ["BuilderFlag -> None"],
    "IBuilderConfig.set_compute_capability": ["ComputeCapability, int -> bool"],
    "IOptimizationProfile.set_shape": ["str, tuple, tuple, tuple -> None"],
    "OnnxParser": ["INetworkDefinition, ILogger -> None"],
    "OnnxParser.load_model_proto": ["bytes -> bool"],
    "OnnxParser.load_initializer": ["str, int, int -> bool"],
    "OnnxParser.parse_model_proto": ["-> bool"],
    "OnnxParser.get_error": ["int -> IParserError"],
    "ParserError.desc": ["-> str"],
    "INetworkDefinition.add_input": ["str, DataType, tuple -> ITensor"],
    "INetworkDefinition.get_layer": ["int -> ILayer"],
    "INetworkDefinition.get_input": ["int -> ITensor"],
    "INetworkDefinition.add_constant": ["tuple, Weights -> IConstantLayer"],
    "INetworkDefinition.add_slice": ["ITensor, tuple, tuple, tuple -> ISliceLayer"],
    "INetworkDefinition.add_shape": ["ITensor -> IShapeLayer"],
    "INetworkDefinition.add_shuffle": ["ITensor -> IShuffleLayer"],
    "INetworkDefinition.add_elementwise": [
        "ITensor, ITensor, ElementWiseOperation -> IElementWiseLayer"
    ],
    "INetworkDefinition.add_concatenation": ["list -> IConcatenationLayer"],
    "Weights": ["array -> None"],
    "Weights.numpy": ["-> object"],
    "ILayer.get_output": ["int -> ITensor"],
    "ILayer.get_input": ["int -> ITensor"],
    "ILayer.set_input": ["int, ITensor -> None"],
    "IAttention.get_input": ["int -> ITensor"],
    "IAttention.set_input": ["int, ITensor -> bool"],
    "PluginField": ["str, array, PluginFieldType -> None"],
    "PluginFieldCollection": ["list -> None"],
    "IPluginRegistry.register_creator": ["IPluginCreatorV3One, str -> bool"],
    "IPluginRegistry.deregister_creator": ["IPluginCreatorV3One -> bool"],
    "Runtime": ["ILogger -> None"],
    "Runtime.deserialize_cuda_engine": ["mmap -> ICudaEngine"],
    "ICudaEngine.create_runtime_config": ["-> IRuntimeConfig"],
    "ICudaEngine.create_execution_context": ["IRuntimeConfig -> IExecutionContext"],
    "IRuntimeConfig.set_execution_context_allocation_strategy": [
        "ExecutionContextAllocationStrategy -> None"
    ],
    "IRuntimeConfig.create_runtime_cache": ["-> IRuntimeCache"],
    "IRuntimeConfig.set_runtime_cache": ["IRuntimeCache -> bool"],
    "IRuntimeCache.deserialize": ["bytes -> bool"],
    "IRuntimeCache.serialize": ["-> IHostMemory"],
    "IExecutionContext.set_device_memory": ["int, int -> None"],
    "IExecutionContext.set_optimization_profile_async": ["int, int -> bool"],
    "IExecutionContext.set_input_shape": ["str, tuple -> bool"],
    "IExecutionContext.set_tensor_address": ["str, int -> bool"],
    "IExecutionContext.execute_async_v3": ["int -> bool"],
    "IExecutionContext.is_stream_capturable": ["int -> bool"],
}
"""Class, or class and method -> the types that it is given, and that of its answer."""
ATTRIBUTES = {
    "IAttention.causal_kind": "CausalMaskKind",
    "IAttention.key_value_lengths": "ITensor",
    "IAttention.decomposable": "bool",
    "IConcatenationLayer.axis": "int",
    "IShuffleLayer.reshape_dims": "tuple",
    "IMatrixMultiplyLayer.op1": "MatrixOperation",
    "IBuilderConfig.progress_monitor": "IProgressMonitor",
    "IBuilderConfig.profiling_verbosity": "ProfilingVerbosity",
    "IBuilderConfig.builder_optimization_level": "int",
    "IBuilderConfig.num_compute_capabilities": "int",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": (
        "DynamicShapesKernelSpecializationStrategy"
    ),
}
"""What is assigned, and the type of it."""
TAKES = {
    "int": {"SupportsInt", "SupportsIndex", "int"},
    "bool": {"bool"},
    "str": {"str", "FallbackString"},
    "tuple": {"tuple", "Dims"},
    "list": {"list", "Sequence", "Iterable"},
    "bytes": {"Buffer"},
    "mmap": {"Buffer"},
    "array": {"Buffer", "ndarray"},
}
"""Python's types -> the types of arguments that take them."""
OURS = {"append", "clone", "update", "write"}
"""Methods of objects that are ours or Python's, though a class of TensorRT has the name, too."""
FUNCTIONS = {"get_plugin_registry"}
"""Of the module, though a class has the name, too: see `test_names.py`."""


@dataclass(frozen=True)
class Signature:
    """Types of what a function takes besides `self`, how many must be given, and its answer's."""

    takes: tuple[str, ...]
    least: int
    gives: str

    def accepts(self, given: list[str], wanted: str) -> bool:
        fits = self.least <= len(given) <= len(self.takes) and all(map(taken, given, self.takes))
        return fits and self.gives == wanted


def taken(given: str, type_: str) -> bool:
    """Whether an argument of type `type_` takes what is given."""
    if given in TAKES:
        return type_ in TAKES[given]
    known = getattr(trt, type_, None)
    return isinstance(known, type) and issubclass(getattr(trt, given), known)


def signatures(doc: str) -> list[Signature]:
    """Those of all overloads in a docstring; methods take `self` first."""
    found = []
    for line in doc.splitlines():
        head = re.fullmatch(r"(?:\d+\. )?\w*\((.*)\) -> (.+)", line.strip())
        if head is None or "*args" in line:
            continue
        arguments = [one for one in re.split(r", (?=\w+: )", head[1]) if one][1:]
        types = tuple(plain(one.split(": ", 1)[1].split(" = ")[0]) for one in arguments)
        required = sum(" = " not in one for one in arguments)
        found.append(Signature(types, required, plain(head[2])))
    return found


def plain(type_: str) -> str:
    """A type's own name, without module and parameters: `nvinfer1::X`, `a.b.X`, `X[int]`."""
    return re.split(r"\.|::", type_.strip().split("[")[0])[-1]


def documented(name: str) -> list[Signature]:
    """Of a method, or of a class's constructor."""
    kind, _, method = name.partition(".")
    return signatures(getattr(getattr(trt, kind), method or "__init__").__doc__)


def wrong(calls: dict[str, list[str]]) -> list[str]:
    """Calls that fit no signature of the library."""
    found = []
    for name, each in calls.items():
        for call in each:
            given, _, gives = call.rpartition("-> ")
            types = [one.strip() for one in given.split(",") if one.strip()]
            if not any(known.accepts(types, gives) for known in documented(name)):
                found.append(f"{name}: {call}")
    return found


def made(module: ModuleType) -> Iterator[tuple[str, int]]:
    """Name and number of arguments of every call `x.name(...)` of a module."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr, len(node.args) + len(node.keywords)


def assigned(module: ModuleType) -> Iterator[str]:
    """Attributes that a module assigns, but for those of its own objects."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
            continue
        if ast.unparse(node.value) != "self":
            yield node.attr


def of_tensorrt() -> set[str]:
    """Names of methods of the classes that we use, and of all classes."""
    kinds = {name.partition(".")[0] for name in CALLS}
    methods = {
        method
        for kind in kinds
        for method, value in inspect.getmembers(getattr(trt, kind))
        if callable(value) and not method.startswith("_")
    }
    return (methods | kinds) - OURS - FUNCTIONS


def test_every_call_fits_a_signature() -> None:
    assert wrong(CALLS) == []


def test_every_call_that_is_made_is_among_them_and_each_of_them_is_made() -> None:
    known = {
        (
            name.rpartition(".")[2],
            sum(1 for one in call.rpartition("->")[0].split(",") if one.strip()),
        )
        for name, each in CALLS.items()
        for call in each
    }
    names = of_tensorrt()
    found = {call for module in MODULES for call in made(module) if call[0] in names}
    source = "\n".join(map(inspect.getsource, MODULES))
    looked_up = {call for call in known if f'"{call[0]}"' in source}  # by getattr
    assert found | looked_up == known


def test_every_attribute_that_is_assigned_takes_its_type() -> None:
    for name, given in ATTRIBUTES.items():
        kind, _, attribute = name.partition(".")
        setter = getattr(getattr(trt, kind), attribute).fset
        assert setter is not None, f"{name} cannot be assigned"
        (known,) = signatures(setter.__doc__)
        assert known.accepts([given], known.gives), f"{name} takes {known.takes}, not {given}"
    names = {name.partition(".")[2] for name in ATTRIBUTES}
    used = {name for module in MODULES for name in assigned(module)}
    assert names <= used
    kinds = {name.partition(".")[0] for name in (*CALLS, *ATTRIBUTES)}
    fields = {
        field
        for kind in kinds
        for field, value in inspect.getmembers(getattr(trt, kind))
        if isinstance(value, property)
    }
    assert used & fields == names


def test_what_an_upgrade_changes_is_seen() -> None:
    assert wrong({"Runtime.deserialize_cuda_engine": ["str -> ICudaEngine"]})
    assert wrong({"IExecutionContext.set_device_memory": ["int -> None"]}), "its size is missing"
    assert wrong({"IExecutionContext.set_device_memory": ["int, int -> bool"]}), "answers nothing"
    assert wrong({"IBuilderConfig.set_flag": ["PreviewFeature -> None"]})
    (one,) = signatures("f(self: a.b.C, x: typing.SupportsInt, y: a.b.D = <D.E: 0>) -> n::F")
    assert one == Signature(("SupportsInt", "D"), 1, "F")
