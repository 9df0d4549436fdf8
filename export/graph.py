"""The graph's file: it says what it is, and it is checked against the contract as it is written."""

import os
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference
import onnx_ir as ir

from nemo_trt import __version__, contract
from nemo_trt.config import ModelConfig
from nemo_trt.errors import ExportError
from nemo_trt.precision import DType

from .checkpoints import Checkpoint


def describe(model: ir.Model, checkpoint: Checkpoint) -> None:
    """Write into the graph what it is and where it comes from."""
    model.producer_name, model.producer_version = "nemo-trt", __version__
    model.graph.name = checkpoint.config.architecture
    model.graph.doc_string = (
        f"{checkpoint.config.architecture} decoder with in-place KV cache. B batch rows, S new "
        "tokens, T cache capacity, N logit positions. Query i of a row sees key j when "
        "j <= write_indices + i."
    )
    model.metadata_props.update(
        {
            "nemo_trt.contract_version": str(contract.CONTRACT_VERSION),
            "nemo_trt.source": os.fsencode(checkpoint.path.name).decode(errors="replace"),
            "nemo_trt.source_format": checkpoint.format,
        }
    )


def save_graph(model: ir.Model, path: Path, config: ModelConfig, precision: DType) -> None:
    """Write the graph and prove that it is the contract's and a valid one.

    Raises:
        ExportError: it is not; a fault of ours.
    """
    ir.save(model, path)
    for found, specs in (
        (model.graph.inputs, contract.inputs(config, precision)),
        (model.graph.outputs, contract.outputs(config, precision)),
    ):
        have = [(v.name, int(v.dtype or 0), _dimensions(v.shape)) for v in found]
        want = [(spec.name, spec.dtype.onnx_code, spec.shape) for spec in specs]
        if have != want:
            odd = next((pair for pair in zip(have, want, strict=False) if pair[0] != pair[1]), None)
            raise ExportError(f"The graph must follow the contract, first difference: {odd}.")
    domains = {node.domain for node in model.graph}
    if domains != {""}:
        raise ExportError(f"The graph must use standard operators alone, got domains {domains}.")
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The ONNX checker refuses the graph: {error}") from error


def _dimensions(shape: ir.Shape | None) -> tuple[int | str, ...]:
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in shape or ())
