"""QuantizeLinear and DequantizeLinear have no BF16 kernels: cast before and after."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PostconditionError

from .graph_pass import GraphPass, constant, follow, make, nodes_of, source

_BF16 = ir.DataType.BFLOAT16


class QuantiseInFp32(GraphPass):
    """Quantises and dequantises activations in fp32, which alters no number."""

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        for node in nodes_of(graph, "QuantizeLinear", "DequantizeLinear"):
            scale = ir.convenience.get_const_tensor(source(node, 1))
            if scale is None or scale.dtype is not _BF16:
                continue
            wide = ir.Tensor(scale.numpy().astype(np.float32))
            node.replace_input_with(1, constant(graph, f"{node.name}.scale.fp32", wide))
            if node.op_type == "QuantizeLinear":
                cast = make(
                    "Cast", [source(node, 0)], f"{node.name}.fp32", to=int(ir.DataType.FLOAT)
                )
                graph.insert_before(node, cast)
                node.replace_input_with(0, cast.outputs[0])
            else:
                value = node.outputs[0]
                cast = make("Cast", [value], f"{node.name}.base", to=int(_BF16))
                follow(graph, value, [cast])
                value.type = ir.TensorType(ir.DataType.FLOAT)

    def ensures(self, model: ir.Model) -> None:
        """No scale is BF16."""
        for node in nodes_of(model.graph, "QuantizeLinear", "DequantizeLinear"):
            scale = ir.convenience.get_const_tensor(source(node, 1))
            if scale is not None and scale.dtype is _BF16:
                raise PostconditionError(f"scales in fp32, it left {node.name}")
