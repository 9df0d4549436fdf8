"""Behind the logits stand the largest ones and the mass of all, so that few bytes leave a device.

A lowering adds them in memory; a bundle never has them.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PreconditionError

from nemo_trt import contract

from .graph_pass import GraphPass, constant, make

TEMPERATURES = "temperatures"
"""Input float32 (B,): what the logits of a row are divided by; above 0."""
IDS, VALUES, MASS, MASS_TEMPERED = OUTPUTS = (
    "candidate_ids",
    "candidate_logits",
    "candidate_mass",
    "candidate_mass_tempered",
)
"""Outputs: int32 (B, N, K) tokens, float32 (B, N, K) their logits, descending, and float32 (B, N)
sums over the vocabulary of exp(logit - largest), plain and divided by the temperature."""


class AddCandidates(GraphPass):
    """Puts TopK and two sums of exponentials behind the logits, which stay an output.

    Args:
        count: K, or the whole vocabulary if that is smaller.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def requires(self, model: ir.Model) -> None:
        """There are logits of a known vocabulary."""
        _logits_of(model.graph)

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        logits = _logits_of(graph)
        assert logits.shape is not None
        rows, positions, vocab_size = logits.shape
        assert isinstance(vocab_size, int)
        count = min(self._count, vocab_size)
        temperatures = ir.Value(
            name=TEMPERATURES, shape=ir.Shape([rows]), type=ir.TensorType(ir.DataType.FLOAT)
        )
        graph.inputs.append(temperatures)

        def numbers(name: str, *values: int) -> ir.Value:
            return constant(graph, f"candidates.{name}", ir.Tensor(np.array(values, np.int64)))

        last = numbers("axis", 2)
        largest = ir.node(
            "TopK",
            [logits, numbers("count", count)],
            {"axis": 2},
            outputs=[ir.Value(name=VALUES), ir.Value(name=f"{IDS}.int64")],
            name="candidates.TopK",
        )
        values, ids = largest.outputs
        peak = make("Slice", [values, numbers("first", 0), numbers("second", 1), last], "peak")
        relative = make("Sub", [logits, peak.outputs[0]], "relative")
        weights = make("Exp", relative.outputs, "weights")
        degrees = make("Unsqueeze", [temperatures, numbers("others", 1, 2)], "degrees")
        scaled = make("Div", [relative.outputs[0], degrees.outputs[0]], "scaled")
        tempered = make("Exp", scaled.outputs, "tempered")
        narrow = make("Cast", [ids], IDS, to=int(ir.DataType.INT32))
        mass = make("ReduceSum", [weights.outputs[0], last], MASS, keepdims=0)
        mass_tempered = make("ReduceSum", [tempered.outputs[0], last], MASS_TEMPERED, keepdims=0)
        between = [peak, relative, weights, degrees, scaled, tempered]
        for node in between:
            node.name = node.outputs[0].name = f"candidates.{node.name}"
        graph.extend([largest, *between, narrow, mass, mass_tempered])
        for value, dtype, width in (
            (narrow.outputs[0], ir.DataType.INT32, [count]),
            (values, ir.DataType.FLOAT, [count]),
            (mass.outputs[0], ir.DataType.FLOAT, []),
            (mass_tempered.outputs[0], ir.DataType.FLOAT, []),
        ):
            value.type = ir.TensorType(dtype)
            value.shape = ir.Shape([rows, positions, *width])
            graph.outputs.append(value)


def _logits_of(graph: ir.Graph) -> ir.Value:
    found = [value for value in graph.outputs if value.name == contract.LOGITS]
    if not found or found[0].shape is None or not isinstance(found[0].shape[-1], int):
        raise PreconditionError("logits over a known vocabulary")
    return found[0]
