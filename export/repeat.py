"""Turns a traced one-layer graph into one of many layers, and names its nodes by their module."""

import ast
from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from onnxscript.optimizer import fold_constants

from nemo_trt import contract

_FOLDED_SIZE = 32  # elements: scalars and shapes, never a weight
_SCOPES = "pkg.torch.onnx.name_scopes"
_FIRST_LAYER = "model.layers.0"


def name_by_scope(model: ir.Model) -> None:
    """Name nodes and values `MODULE.OP`, dimensions by shape letter, and drop all other metadata.

    Also removes what a translation leaves behind: unused optional outputs and double constants.
    """
    fold_constants(model, input_size_limit=_FOLDED_SIZE, output_size_limit=_FOLDED_SIZE)
    ir_passes.CommonSubexpressionEliminationPass()(model)
    ir_passes.RemoveUnusedNodesPass()(model)
    graph = model.graph
    letters = _dimension_letters(graph)
    kept = {*graph.inputs, *graph.outputs}
    seen: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope.startswith(_PREFIXES)), "")
        base = f"{module}.{node.op_type}" if module else node.op_type
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        node.metadata_props.clear()
        _drop_unused_outputs(node)
        for index, value in enumerate(node.outputs):
            value.metadata_props.clear()
            value.shape = _rename_dimensions(value.shape, letters)
            if value not in kept:
                value.name = node.name if index == 0 else f"{node.name}:{index}"
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.shape = _rename_dimensions(value.shape, letters)
    graph.metadata_props.clear()
    model.metadata_props.clear()


_PREFIXES = ("model.", "lm_head")


def _drop_unused_outputs(node: ir.Node) -> None:
    used = max((i for i, value in enumerate(node.outputs) if value.uses()), default=0)
    if not any(value.is_graph_output() for value in node.outputs[used + 1 :]):
        node.resize_outputs(used + 1)


def _dimension_letters(graph: ir.Graph) -> dict[str, str]:
    """The tracer's names of the dynamic dimensions -> B, S, N, T."""
    ids, _, logit_indices, past = graph.inputs[:4]
    letters = {}
    for value, names in ((ids, "BS"), (logit_indices, "BN"), (past, "B.T.")):
        assert value.shape is not None
        for dimension, letter in zip(value.shape, names, strict=True):
            if letter != ".":
                letters[str(dimension)] = letter
    return letters


def _rename_dimensions(shape: ir.Shape | None, letters: dict[str, str]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([dim if isinstance(dim, int) else letters.get(str(dim)) for dim in shape])


def repeat_layer(model: ir.Model, num_layers: int) -> None:
    """Copy the nodes of layer 0 for the layers 1 to `num_layers - 1`, each with its own weights.

    Constants are shared by all layers. Requires a graph of one layer, named by `name_by_scope`;
    ensures that inputs, outputs and initializers of every layer exist, in the contract's order.
    """
    graph = model.graph
    template = [
        node
        for node in graph
        if (node.name or "").startswith(f"{_FIRST_LAYER}.") and node.op_type != "Constant"
    ]
    hidden_in, hidden_out = template[0].inputs[0], template[-1].outputs[0]
    assert hidden_in is not None
    readers = [(node, index) for node, index in hidden_out.uses()]
    last, anchor = hidden_out, template[-1]
    for layer in range(1, num_layers):
        for kind in ("key", "value"):
            first = _only(v for v in graph.inputs if v.name == contract.past_name(0, kind))
            graph.inputs.append(_renamed(first, contract.past_name(layer, kind)))
        mapped = _inputs_of_layer(graph, template, layer)
        mapped[hidden_in] = last
        copies = [_copy(node, layer, mapped) for node in template]
        graph.insert_after(anchor, copies)
        for kind in ("key", "value"):
            first = _only(v for v in graph.outputs if v.name == contract.present_name(0, kind))
            mapped[first].name = contract.present_name(layer, kind)
            graph.outputs.append(mapped[first])
        last, anchor = mapped[hidden_out], copies[-1]
    for node, index in readers:
        node.replace_input_with(index, last)


def _inputs_of_layer(
    graph: ir.Graph, template: list[ir.Node], layer: int
) -> dict[ir.Value, ir.Value]:
    """Map what layer 0 reads from outside to what `layer` reads: its weights and caches."""
    by_name = {value.name: value for value in graph.inputs}
    mapped: dict[ir.Value, ir.Value] = {}
    for value in (value for node in template for value in node.inputs if value is not None):
        name = value.name or ""
        if value.is_initializer() and name.startswith(f"{_FIRST_LAYER}."):
            if value not in mapped:
                mapped[value] = _renamed(value, _of_layer(name, layer))
                graph.initializers.add(mapped[value])
        elif value.is_graph_input() and name.startswith("past_key_values.0."):
            mapped[value] = by_name[name.replace(".0.", f".{layer}.", 1)]
    return mapped


def _copy(node: ir.Node, layer: int, mapped: dict[ir.Value, ir.Value]) -> ir.Node:
    """A copy of a template node for `layer`; its outputs are entered into `mapped`."""
    outputs = [_renamed(value, _of_layer(value.name or "", layer)) for value in node.outputs]
    mapped.update(zip(node.outputs, outputs, strict=True))
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else mapped.get(value, value) for value in node.inputs],
        node.attributes,
        outputs=outputs,
        name=_of_layer(node.name or "", layer),
    )


def _of_layer(name: str, layer: int) -> str:
    return name.replace(_FIRST_LAYER, f"model.layers.{layer}", 1)


def _renamed(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _only(values: Iterable[ir.Value]) -> ir.Value:
    (value,) = values
    return value
