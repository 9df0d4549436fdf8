"""A bundle's graph cut into pieces that run alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.errors import BundleError
from nemo_trt.manifest import GRAPH_FILE

from .places import COS, EMBEDDING, HIDDEN, LOGITS, NORM, SIN, Array, values_of

EMBEDDING_VALUE = "model.embed_tokens.Gather"
NORM_VALUE = "model.norm.RMSNormalization"
_FED = "reference/"


class Pieces:
    """The pieces of a bundle's graph: embedding, layers, head.

    Args:
        bundle: whose graph is cut; weights are read as a piece needs them.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._free = self._read()
        self._fed = self._read()
        self._angles = self._find_angles()
        self._fork()

    def places(self, part: int | str) -> dict[str, str]:
        """Place -> the graph's name of its value, in the order of computation."""
        if part == "embedding":
            return {EMBEDDING: EMBEDDING_VALUE, COS: self._angles[0], SIN: self._angles[1]}
        if part == "head":
            return {NORM: NORM_VALUE, LOGITS: contract.LOGITS}
        assert isinstance(part, int)
        return values_of(part)

    def fed(self, part: int | str) -> onnx.ModelProto:
        """A piece in which every place reads the reference's values: each error is its own."""
        return self._piece(self._fed, list(self.places(part).values()))

    def place(self, value: str) -> onnx.ModelProto:
        """What computes one value of a place, fed with the reference's values."""
        return self._piece(self._fed, [value])

    def free(self, layer: int) -> onnx.ModelProto:
        """A whole layer from its input to its output and its caches, which TensorRT asks for."""
        places = values_of(layer)
        outputs = [
            places[one] for one in ("output", "self_attn.key_cache", "self_attn.value_cache")
        ]
        return self._piece(self._free, outputs, [self.hidden(layer)])

    def hidden(self, layer: int) -> str:
        """The graph's name of a layer's input."""
        return values_of(layer - 1)["output"] if layer else EMBEDDING_VALUE

    def feeds(self, part: int | str, seen: Mapping[str, Array]) -> dict[str, Array]:
        """What a fed piece is given, by its inputs' names, of the reference's values by place."""
        named = {value: seen[place] for place, value in self.places(part).items()}
        if isinstance(part, int):
            named |= {self.hidden(part): seen[HIDDEN]}
            named |= {self._angles[0]: seen[COS], self._angles[1]: seen[SIN]}
        elif part == "head":
            named[self.hidden(self.bundle.config.num_layers)] = seen[HIDDEN]
        return self.named(named)

    def named(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Values by the graph's names, under the names of the inputs that feed them."""
        return {_FED + name: array for name, array in values.items()}

    def _read(self) -> ir.Model:
        try:
            return ir.load(self.bundle.path / GRAPH_FILE)
        except Exception as error:  # protobuf raises its own, undocumented kinds
            raise BundleError(f"{self.bundle} holds no readable ONNX graph: {error}.") from error

    def _find_angles(self) -> tuple[str, str]:
        for node in self._free.graph:
            if node.op_type == "RotaryEmbedding":
                cos, sin = node.inputs[1:3]
                if cos is not None and sin is not None and cos.name and sin.name:
                    return cos.name, sin.name
        raise BundleError(f"The graph of {self.bundle} must have a RotaryEmbedding, got none.")

    def _fork(self) -> None:
        """Let all that reads the value of a place read a graph input instead."""
        graph = self._fed.graph
        dtype = ir.DataType(self.bundle.precision.base.onnx_code)
        values = ir.convenience.create_value_mapping(graph)
        graph.outputs.clear()
        parts: list[int | str] = ["embedding", *range(self.bundle.config.num_layers), "head"]
        for part in parts:
            for name in self.places(part).values():
                if name not in values:
                    raise BundleError(
                        f"The graph of {self.bundle} must have the value {name}, got none. Export "
                        "it with this version, then explain it."
                    )
                fed = ir.Value(name=_FED + name, type=ir.TensorType(dtype))
                values[name].replace_all_uses_with(fed)
                graph.inputs.append(fed)

    def _piece(
        self, model: ir.Model, outputs: Sequence[str], inputs: Sequence[str] = ()
    ) -> onnx.ModelProto:
        ends = [value.name for value in model.graph.inputs]
        graph = ir.convenience.extract(model.graph, [*(n for n in ends if n), *inputs], outputs)
        read = {value for node in graph for value in node.inputs}
        for value in list(graph.inputs):
            if value not in read:
                graph.inputs.remove(value)
        dtype = ir.DataType(self.bundle.precision.base.onnx_code)
        for value in (*graph.inputs, *graph.outputs):
            if value.type is None:
                value.type = ir.TensorType(dtype)
        return ir.to_proto(ir.Model(graph, ir_version=model.ir_version))


def with_shapes(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> onnx.ModelProto:
    """State the shapes of what a piece is fed; Polygraphy and TensorRT ask for them."""
    for value in model.graph.input:
        value.type.tensor_type.shape.CopyFrom(_shape(feeds[value.name]))
    return model


def _shape(array: Any) -> onnx.TensorShapeProto:
    dims = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in array.shape]
    return onnx.TensorShapeProto(dim=dims)
