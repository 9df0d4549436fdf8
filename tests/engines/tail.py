"""Candidates put behind a graph, and taken away again."""

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nemo_trt.engines.candidates import NUM_CANDIDATES
from nemo_trt.passes.add_candidates import OUTPUTS, TEMPERATURES, AddCandidates
from nemo_trt.passes.graph_pass import apply


def with_candidates(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph as lowerings give it to a device."""
    changed = ir.from_proto(model)
    apply(changed, [AddCandidates(NUM_CANDIDATES)])
    return ir.to_proto(changed)


def without_candidates(model: onnx.ModelProto) -> onnx.ModelProto:
    """A lowered graph with the inputs and outputs of a bundle's."""
    changed = ir.from_proto(model)
    graph = changed.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name not in OUTPUTS]
    RemoveUnusedNodesPass()(changed)
    graph.inputs[:] = [value for value in graph.inputs if value.name != TEMPERATURES]
    return ir.to_proto(changed)
