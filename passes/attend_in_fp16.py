"""Attention and its cache are FP16 where all else is BF16: as many bytes, and three bits more.

TensorRT's fused attention rounds scores and probabilities to the dtype of its inputs. FP16 ends at
65,504. A larger key, value or score is infinite, and the logits behind it are hardly ever numbers:
the sampler and the validator refuse those. A score is at most RMS(q) * RMS(k) * sqrt(D) after the
scale: at D = 128 both must be 76 to reach that. Below 2^-14 numbers are multiples of 2^-24.

A BF16 product of the result is FP16, too: TensorRT would otherwise cast the result in a kernel of
its own. Its weight is below 65,504 by far, and loses nothing above 2^-14.
"""

import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from .graph_pass import GraphPass, follow, make, nodes_of, source

_CACHES = {"TensorScatter": (0,), "Attention": (1, 2)}
"""Inputs that may be a cache, as those of the whole graph and of a piece are."""
_BF16, _FP16 = ir.DataType.BFLOAT16, ir.DataType.FLOAT16


class AttendInFp16(GraphPass):
    """Casts queries, new keys and new values to FP16, states it of caches, and casts the result.

    What is cast to BF16 just before it is attended is cast to FP16 instead.
    """

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "TensorScatter"):
            if source(node, 1).dtype is _BF16:
                _narrow(graph, node, 1)
            _state_fp16(node.outputs[0])
        for node in nodes_of(graph, "TensorScatter", "Attention"):
            for value in (source(node, index) for index in _CACHES[node.op_type]):
                if value.is_graph_input():
                    _state_fp16(value)
        for node in nodes_of(graph, "Attention"):
            result = node.outputs[0]
            if result.dtype is not _BF16:
                continue
            _narrow(graph, node, 0)
            _state_fp16(result)
            last = node
            while (reader := _only_reader(last)) and reader.op_type in ("Transpose", "Reshape"):
                last = reader
                _state_fp16(last.outputs[0])
            if reader and reader.op_type == "MatMul":
                turned = source(reader, 1).producer()  # a weight behind a Transpose stays there
                _narrow(graph, *((turned, 0) if turned else (reader, 1)))
                last = reader
            result = last.outputs[0]
            follow(graph, result, [make("Cast", [result], f"{last.name}.base", to=int(_BF16))])
            result.type = ir.TensorType(_FP16)

    def ensures(self, model: ir.Model) -> None:
        """No attention and no cache is left in BF16."""
        for node in nodes_of(model.graph, "TensorScatter", "Attention"):
            for value in (*node.inputs[:3], node.outputs[0]):
                if value is not None and value.dtype is _BF16:
                    raise PostconditionError(f"no {node.op_type} in BF16, it left {value.name}")


def _narrow(graph: ir.Graph, node: ir.Node, index: int) -> None:
    """Cast an input to FP16."""
    value = source(node, index)
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and _is_bf16(producer):
        value = source(producer, 0)
    cast = make("Cast", [value], f"{node.name}.{index}.fp16", to=int(_FP16))
    cast.outputs[0].type = ir.TensorType(_FP16)
    graph.insert_before(node, [cast])
    node.replace_input_with(index, cast.outputs[0])


def _only_reader(node: ir.Node) -> ir.Node | None:
    readers = node.outputs[0].consumers()
    return readers[0] if len(readers) == 1 and not node.outputs[0].is_graph_output() else None


def _is_bf16(cast: ir.Node) -> bool:
    return cast.attributes["to"].as_int() == int(_BF16)


def _state_fp16(value: ir.Value) -> None:
    if value.dtype is _BF16:
        value.type = ir.TensorType(_FP16)
