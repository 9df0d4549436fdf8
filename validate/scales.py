"""FP8 scales: the graph's must be the manifest's record, and fit the weights' own bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from nemo_trt import e4m3
from nemo_trt.bundle import Bundle
from nemo_trt.e4m3 import scale_of
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.quantization import STORED, Quantization, groups
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import LazyTensor, float32_rows, row_ranges

_SCALED = ("QuantizeLinear", "DequantizeLinear")
_ROUNDING = 2**-8  # of a scale in BF16
_MAX_BIAS = 0.01
"""How far from 1 a weight's mean ratio to its source may be. E4M3 rounds either way, so that the
errors of many numbers cancel: measured below 0.001."""
_STANDARD_ERRORS = 6


@dataclass(slots=True)
class _Scales:
    """What a graph does with one weight: its scale, and those of its input."""

    weight: NDArray[np.float32]
    inputs: list[NDArray[np.float32]] = field(default_factory=list)


def scale_failures(bundle: Bundle, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is wrong with an FP8 bundle's scales, in words; nothing of any other bundle.

    Reads every FP8 weight and its source, some rows in memory at a time.
    """
    quantization = bundle.manifest.quantization
    if quantization is None:
        return ()
    found = _read_scales(onnx.load(bundle.graph_path, load_external_data=False).graph)
    stored = {name: ref for path in bundle.weight_paths for name, ref in read_layout(path).items()}
    failures: list[str] = []
    for group, weights in groups(bundle.config):
        for name in weights:
            if not quantization.is_fp8(group):
                if name in found:
                    failures.append(f"{name} must be BF16 by the manifest, got FP8 in the graph")
            elif name not in found or name not in stored:
                failures.append(f"{name} must be FP8 by the manifest, and the graph has no scale")
            else:
                failures += _against_record(found[name], quantization, group, weights, name)
                failures += _against_source(
                    found[name].weight, stored[name], checkpoint.tensors[name]
                )
    return tuple(failures)


def _read_scales(graph: onnx.GraphProto) -> dict[str, _Scales]:
    """Every FP8 weight that a matmul of the graph reads, by name."""
    constants = {one.name: one for one in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}

    def value(name: str) -> NDArray[np.float32]:
        return np.asarray(onnx.numpy_helper.to_array(constants[name]).astype(np.float32))

    found: dict[str, _Scales] = {}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        weight = producers.get(node.input[1])
        while weight is not None and weight.op_type != "DequantizeLinear":
            weight = producers.get(weight.input[0])
        if weight is None or weight.input[0] not in constants:
            continue
        scales = found.setdefault(weight.input[0], _Scales(value(weight.input[1])))
        activation = producers.get(node.input[0])
        while activation is not None and activation.op_type in _SCALED:
            scales.inputs.append(value(activation.input[1]))
            activation = producers.get(activation.input[0])
    return found


def _against_record(
    scales: _Scales, quantization: Quantization, group: str, weights: tuple[str, ...], name: str
) -> Iterator[str]:
    whole_group = quantization.method != STORED and quantization.weight_scales == "per-tensor"
    expected = (
        quantization.weight_scale(weights)
        if whole_group
        else scale_of(quantization.weight_amax[name])
    )
    largest = float(scales.weight.max())
    if abs(largest - expected) > _ROUNDING * expected:
        yield f"the scale of {name} must be {expected:g} by the manifest, got {largest:g}"
    expected = quantization.activation_scale(group)
    if len(scales.inputs) != 2:
        yield f"the input of {name} must be quantised and dequantised, and is not"
    for one in scales.inputs:
        if one.size != 1 or abs(float(one.max()) - expected) > _ROUNDING * expected:
            got = f"{one.max():g}"
            yield f"the input scale of {name} must be {expected:g} by the manifest, got {got}"


def _against_source(
    scale: NDArray[np.float32], stored: LazyTensor, source: LazyTensor
) -> Iterator[str]:
    """A weight's mean ratio to what it was made from, as a whole and of each row."""
    dots: list[tuple[NDArray[np.float64], ...]] = []
    for start, stop in row_ranges(source):
        exact = float32_rows(source, start, stop)
        bits = stored.rows(start, stop).view(np.uint8)
        made = e4m3.to_float32(bits, scale[start:stop, None] if scale.ndim else float(scale))
        dots.append(
            tuple(
                np.einsum("ij,ij->i", one, other, dtype=np.float64)
                for one, other in ((exact, exact), (exact, made), (made, made))
            )
        )
    square, cross, other = (np.concatenate(parts) for parts in zip(*dots, strict=True))
    width = source.shape[1]
    whole = (one.sum(keepdims=True) for one in (square, cross, other))
    for words, (a, b, c), n in (
        ("as a whole", whole, width * len(square)),
        ("in row {}", (square, cross, other), width),
    ):
        safe = np.where(a > 0, a, 1.0)
        ratio = np.where(a > 0, b / safe, 1.0)
        spread = np.sqrt(np.maximum(c / safe - ratio**2, 0) / n)
        wrong = np.flatnonzero(np.abs(ratio - 1) > _MAX_BIAS + _STANDARD_ERRORS * spread)
        if len(wrong):
            yield (
                f"{stored.name} times its scale must be the checkpoint's numbers, got "
                f"{ratio[wrong[0]]:.4f} of them {words.format(wrong[0])}"
            )
            return
