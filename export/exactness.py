"""Checks that a traced graph rounds nothing to the compute dtype that the reference keeps in fp32.

docs/contract.md lists every constant and intermediate value that is rounded, with its error.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from nemo_trt.config import ModelConfig
from nemo_trt.errors import ExportError

_NARROW = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
_ANGLES = {ir.DataType.FLOAT, ir.DataType.INT64}


def require_exact(model: ir.Model, config: ModelConfig) -> None:
    """Check the softmax scale, the rotary angles, the norms and all constants of a decoder's graph.

    Raises:
        ExportError: one of them is rounded, or is not what `config` states.
    """
    for fault in _faults(model.graph, config):
        raise ExportError(f"{fault}. The traced graph is wrong: do not use it, report it.")


def _faults(graph: ir.Graph, config: ModelConfig) -> Iterator[str]:
    attention_scale = np.float32(config.softmax_scale)
    for node in graph:
        if node.op_type == "Attention":
            query = node.inputs[0]
            producer = query.producer() if query is not None else None
            if np.float32(_float(node, "scale")) != attention_scale:
                yield f"{node.name} must have the scale {attention_scale}"
            if producer is not None and producer.op_type in ("Mul", "Div"):
                yield f"The query of {node.name} must not be scaled before it"
        elif node.op_type == "RMSNormalization":
            stash = node.attributes.get("stash_type")
            if stash is not None and stash.as_int() != ir.DataType.FLOAT:
                yield f"{node.name} must compute in fp32, got stash_type {stash.as_int()}"
            if np.float32(_float(node, "epsilon")) != np.float32(config.rms_norm_eps):
                yield f"{node.name} must have the epsilon {config.rms_norm_eps}"
        elif node.op_type in ("Cos", "Sin"):
            for value in _ancestors(node.inputs[0]):
                if value.dtype not in _ANGLES:
                    yield f"{value.name}, of which {node.name} is taken, must be fp32"
    for value in _constants(graph):
        if value.dtype in _NARROW:
            yield f"The constant {value.name} must be fp32, got {value.dtype}"


def _float(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else float("nan")


def _ancestors(value: ir.Value | None) -> Iterator[ir.Value]:
    """A value and all values, shapes aside, that it is computed from, each once."""
    stack = [value]
    seen: set[ir.Value] = set()
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None else None
        if value is None or value in seen or (node is not None and node.op_type == "Shape"):
            continue
        seen.add(value)
        yield value
        stack += node.inputs if node is not None else ()


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values that the graph itself states; weights and FP8 scales have no data when traced."""
    yield from (v for v in graph.initializers.values() if v.const_value is not None)
    for node in graph:
        if node.op_type == "Constant":
            yield from node.outputs
