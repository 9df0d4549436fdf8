"""A traced graph of one layer becomes one of many."""

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from nemo_trt import contract

from .graph_pass import GraphPass

FIRST_LAYER = "model.layers.0"


class RepeatLayer(GraphPass):
    """Copies the nodes of layer 0 for the layers 1 to `num_layers - 1`, each with its own weights.

    Constants are shared by all layers.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self._num_layers = num_layers

    def requires(self, model: ir.Model) -> None:
        """A graph of one layer, whose nodes are named by their module."""
        caches = {value.name for value in model.graph.inputs}
        if contract.past_name(0, "key") not in caches or contract.past_name(1, "key") in caches:
            raise PreconditionError("one layer")
        if not _template(model.graph):
            raise PreconditionError(f"nodes named {FIRST_LAYER}.*")

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        template = _template(graph)
        hidden_in, hidden_out = template[0].inputs[0], template[-1].outputs[0]
        assert hidden_in is not None
        readers = [(node, index) for node, index in hidden_out.uses()]
        last, anchor = hidden_out, template[-1]
        for layer in range(1, self._num_layers):
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

    def ensures(self, model: ir.Model) -> None:
        """Caches of every layer, in the contract's order."""
        names = list(contract.cache_names(self._num_layers))
        for values, index in ((model.graph.inputs, 0), (model.graph.outputs, 1)):
            wanted = [pair[index] for pair in names]
            if [value.name for value in values][-len(wanted) :] != wanted:
                raise PostconditionError("the caches of every layer")


def _template(graph: ir.Graph) -> list[ir.Node]:
    return [
        node
        for node in graph
        if (node.name or "").startswith(f"{FIRST_LAYER}.") and node.op_type != "Constant"
    ]


def _inputs_of_layer(
    graph: ir.Graph, template: list[ir.Node], layer: int
) -> dict[ir.Value, ir.Value]:
    """Map what layer 0 reads from outside to what `layer` reads: its weights and caches."""
    by_name = {value.name: value for value in graph.inputs}
    mapped: dict[ir.Value, ir.Value] = {}
    for value in (value for node in template for value in node.inputs if value is not None):
        name = value.name or ""
        if value.is_initializer() and name.startswith(f"{FIRST_LAYER}."):
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
    return name.replace(FIRST_LAYER, f"model.layers.{layer}", 1)


def _renamed(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _only(values: Iterable[ir.Value]) -> ir.Value:
    (value,) = values
    return value
