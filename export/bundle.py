"""Writes a bundle, atomically: trace, place the weights, attach them, check, manifest."""

import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import onnx
import onnx.checker
import onnx.shape_inference
import onnx_ir as ir

from nemo_trt import __version__, atomic, contract
from nemo_trt.config import ModelConfig
from nemo_trt.digest import quick_digest, sha256_file
from nemo_trt.errors import ExportError
from nemo_trt.manifest import (
    GRAPH_FILE,
    MANIFEST_FILE,
    NEXT_MANIFEST_FILE,
    TOKENIZER_FOLDER,
    WEIGHTS_FOLDER,
    Manifest,
    WeightFile,
    WeightsMode,
)
from nemo_trt.precision import DType
from nemo_trt.progress import Progress, Silent
from nemo_trt.quantization import LM_HEAD, STORED, Quantization, groups
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import TensorRef

from .checkpoints import Checkpoint, open_checkpoint
from .finite import require_finite
from .quantization.graph import set_scales
from .quantization.weights import scales_of, write_fp8_weights
from .target import relative_to_bundle, require_target
from .trace import numerics_of, trace_decoder
from .weights import (
    attach_weights,
    copy_file,
    require_precision,
    write_weights,
)

_WEIGHTS_FILE = "model.safetensors"
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript")


def export_bundle(
    source: Path | Checkpoint,
    bundle: Path,
    *,
    precision: DType | None = None,
    weights: WeightsMode = "copy",
    sha256: bool = False,
    force: bool = False,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Export a checkpoint to a bundle.

    Memory: the graph alone; no weight is allocated, and a copy happens inside the kernel. FP8
    weights are quantised in pieces of 8 MB.

    Args:
        source: what `open_checkpoint` reads, or what it gave.
        bundle: the folder to write. For `weights="in-place"` it is the folder that holds the
            checkpoint's weight files, or one above it: external data cannot lie outside.
        precision: compute precision; by default the one that the weights are stored in. Another
            one is cast in the graph, the bytes stay.
        weights: "copy" them into the bundle, or leave them "in-place".
        sha256: digest the weight files whole (reads every byte) and not only in samples.
        force: replace an existing bundle.
        quantization: scales of FP8, from `export.quantization.calibrate`, an FP8 bundle's manifest
            or, for an FP8 checkpoint, `export.quantization.stored`. Needed for FP8 alone.

    Returns:
        The manifest that was written.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        ExportError: the target exists, the disk is full, or the target does not suit `weights`.
    """
    progress = progress or Silent()
    progress.phase("read checkpoint headers")
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    chosen = require_precision(checkpoint, precision)
    _require_quantization(chosen, quantization, checkpoint)
    locations = require_target(
        checkpoint,
        bundle,
        precision=chosen,
        weights=weights,
        force=force,
        quantization=quantization,
    )
    quantised = quantization is not None and not checkpoint.fp8
    if checkpoint.weight_files and not quantised:  # others are checked as they are written
        require_finite(_stored(checkpoint).values(), progress)
    progress.phase("trace the decoder")
    model = trace_decoder(
        checkpoint.config, chosen, numerics_of(checkpoint.config, chosen, quantization)
    )
    _describe(model, checkpoint)
    if quantization and quantised:
        return _write_fp8(model, checkpoint, quantization, bundle, force, sha256, progress)
    if quantization:
        set_scales(model.graph, scales_of(checkpoint, quantization))
    if not checkpoint.weight_files:
        return _write_new(model, checkpoint, chosen, bundle, force, sha256, progress, quantization)
    attach_weights(model, _stored(checkpoint), locations)
    if weights == "in-place":
        return _write_in_place(
            model, checkpoint, chosen, bundle, locations, sha256, progress, quantization
        )
    with atomic.new_directory(bundle, replace=force) as folder:
        (folder / WEIGHTS_FOLDER).mkdir()
        progress.phase("copy the weights", checkpoint.num_file_bytes, "bytes")
        for path, location in locations.items():
            copy_file(path, folder / location, progress)
        return _finish(
            model, checkpoint, chosen, folder, locations.values(), sha256, progress, quantization
        )


def _stored(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    """Where every weight lies in the checkpoint's own files."""
    return {name: ref for name, ref in checkpoint.tensors.items() if isinstance(ref, TensorRef)}


def _write_new(
    model: ir.Model,
    checkpoint: Checkpoint,
    precision: DType,
    bundle: Path,
    force: bool,
    sha256: bool,
    progress: Progress,
    quantization: Quantization | None,
) -> Manifest:
    """Write the weights to one file of their own, and point the graph at them."""
    location = PurePosixPath(WEIGHTS_FOLDER, _WEIGHTS_FILE)
    with atomic.new_directory(bundle, replace=force) as folder:
        path = folder / location
        path.parent.mkdir()
        write_weights(checkpoint, path, progress)
        attach_weights(model, read_layout(path), {path: location})
        return _finish(
            model, checkpoint, precision, folder, [location], sha256, progress, quantization
        )


def _write_fp8(
    model: ir.Model,
    checkpoint: Checkpoint,
    quantization: Quantization,
    bundle: Path,
    force: bool,
    sha256: bool,
    progress: Progress,
) -> Manifest:
    """Write new weights, and point the graph at them."""
    location = PurePosixPath(WEIGHTS_FOLDER, _WEIGHTS_FILE)
    scales = scales_of(checkpoint, quantization)
    set_scales(model.graph, scales)
    with atomic.new_directory(bundle, replace=force) as folder:
        path = folder / location
        path.parent.mkdir()
        write_fp8_weights(checkpoint, quantization, scales, path, progress)
        attach_weights(model, read_layout(path), {path: location})
        return _finish(
            model, checkpoint, DType.FP8, folder, [location], sha256, progress, quantization
        )


def _finish(
    model: ir.Model,
    checkpoint: Checkpoint,
    precision: DType,
    folder: Path,
    locations: Iterable[PurePosixPath],
    sha256: bool,
    progress: Progress,
    quantization: Quantization | None = None,
) -> Manifest:
    """Complete a new bundle whose weights are written: tokenizer, graph, manifest."""
    if checkpoint.tokenizer_files:
        (folder / TOKENIZER_FOLDER).mkdir()
    for file in checkpoint.tokenizer_files:
        file.write_to(folder / TOKENIZER_FOLDER)
    progress.phase("write and check the graph")
    _save_graph(model, folder / GRAPH_FILE, checkpoint.config, precision)
    manifest = _manifest(
        checkpoint,
        precision=precision,
        weights_mode="copy",
        graph_sha256=sha256_file(folder / GRAPH_FILE),
        weights=_digests(folder, locations, sha256, progress),
        tokenizer_files=tuple(
            f"{TOKENIZER_FOLDER}/{file.name}" for file in checkpoint.tokenizer_files
        ),
        quantization=quantization,
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _write_in_place(
    model: ir.Model,
    checkpoint: Checkpoint,
    precision: DType,
    bundle: Path,
    locations: Mapping[Path, PurePosixPath],
    sha256: bool,
    progress: Progress,
    quantization: Quantization | None,
) -> Manifest:
    """Add graph and manifest to the folder that holds the weights already."""
    with atomic.new_file(bundle / GRAPH_FILE) as graph:
        progress.phase("write and check the graph")
        _save_graph(model, graph, checkpoint.config, precision)
        manifest = _manifest(
            checkpoint,
            precision=precision,
            weights_mode="in-place",
            graph_sha256=sha256_file(graph),
            weights=_digests(bundle, locations.values(), sha256, progress),
            tokenizer_files=tuple(
                relative_to_bundle(file.path, bundle).as_posix()
                for file in checkpoint.tokenizer_files
                if file.path
            ),
            quantization=quantization,
        )
        atomic.write_text(bundle / NEXT_MANIFEST_FILE, manifest.to_json())
    # The graph has its name: from here on the new bundle is the one that counts.
    (bundle / NEXT_MANIFEST_FILE).replace(bundle / MANIFEST_FILE)
    return manifest


def _digests(
    root: Path, locations: Iterable[PurePosixPath], sha256: bool, progress: Progress
) -> tuple[WeightFile, ...]:
    progress.phase("digest the weights")
    digests = []
    for location in locations:
        path = root / location
        digests.append(
            WeightFile(
                file=str(location),
                num_bytes=path.stat().st_size,
                quick_digest=quick_digest(path),
                sha256=sha256_file(path) if sha256 else None,
            )
        )
    return tuple(digests)


def _manifest(
    checkpoint: Checkpoint,
    *,
    precision: DType,
    weights_mode: WeightsMode,
    graph_sha256: str,
    weights: tuple[WeightFile, ...],
    tokenizer_files: tuple[str, ...],
    quantization: Quantization | None = None,
) -> Manifest:
    stored = checkpoint.stored_dtypes
    return Manifest(
        config=checkpoint.config,
        precision=precision,
        stored_dtypes=(
            (*stored, DType.FP8) if quantization and DType.FP8 not in stored else stored
        ),
        weights_mode=weights_mode,
        graph_sha256=graph_sha256,
        weights=weights,
        tokenizer_files=tokenizer_files,
        source={
            "path": str(checkpoint.path.resolve()),
            "format": checkpoint.format,
            "architecture": checkpoint.config.architecture,
            **({"dequantised": "from FP8"} if checkpoint.dequantised else {}),
            **({"fp8": checkpoint.fp8_kind} if checkpoint.fp8 else {}),
        },
        tools={
            "nemo-trt": __version__,
            **{name: importlib.metadata.version(name) for name in _TOOLS},
        },
        quantization=quantization,
        adapters=checkpoint.adapters,
    )


def _require_quantization(
    precision: DType,
    quantization: Quantization | None,
    checkpoint: Checkpoint,
) -> None:
    """FP8 and a quantisation of this very model go together."""
    if (precision is DType.FP8) != (quantization is not None):
        raise ExportError("A quantisation must be given for FP8 and for nothing else. Calibrate.")
    if bool(checkpoint.fp8) != (quantization is not None and quantization.method == STORED):
        raise ExportError(
            f"{checkpoint.path} holds FP8 weights and must be exported with its own scales."
            if checkpoint.fp8
            else "The scales are an FP8 checkpoint's own, which no other one can take. Calibrate."
        )
    if quantization is None or checkpoint.fp8:
        return
    every = dict(groups(checkpoint.config))
    needed = {group for group in every if group != LM_HEAD}
    if not needed <= set(quantization.activations) <= set(every):
        odd = sorted(set(quantization.activations).symmetric_difference(needed))[:3]
        raise ExportError(
            f"The scales must be of this model's groups, got others, for example {odd}. "
            "Calibrate this checkpoint."
        )
    missing = [
        name
        for group, names in every.items()
        if quantization.is_fp8(group)
        for name in names
        if name not in quantization.weight_amax
    ]
    if missing:
        raise ExportError(f"The scales must tell the amax of {missing[0]}. Calibrate anew.")


def _describe(model: ir.Model, checkpoint: Checkpoint) -> None:
    """Say in the graph itself what it is."""
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
            "nemo_trt.source": checkpoint.path.name,
            "nemo_trt.source_format": checkpoint.format,
        }
    )


def _save_graph(model: ir.Model, path: Path, config: ModelConfig, precision: DType) -> None:
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
