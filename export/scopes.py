"""Names a traced graph's nodes by their module, and dimensions by the contract's letters."""

import ast
from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
from onnxscript.optimizer import fold_constants

_FOLDED_SIZE = 32  # elements: scalars and shapes, never a weight
_SCOPES = "pkg.torch.onnx.name_scopes"


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
