"""What ONNX Runtime sessions share: how the weights of a lowered graph are handed over."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from nemo_trt import bfloat16
from nemo_trt.passes.weights import detach


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight to hand to ONNX Runtime under `name`, as an array of the given ONNX type."""

    name: str
    array: NDArray[np.generic]
    onnx_type: int


def hand_over(model: ir.Model) -> tuple[onnx.ModelProto, list[Weight]]:
    """A lowered graph, its weights marked external, and every such weight, read by a thread a
    processor: numpy converts them without Python's lock."""
    lazy = detach(model)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        arrays = threads.map(lambda weight: weight.read(), lazy.values())
        weights = [
            Weight(name, array, int(weight.dtype))
            for (name, weight), array in zip(lazy.items(), arrays, strict=True)
        ]
    return ir.to_proto(model), weights


def session_options(weights: list[Weight]) -> Any:
    """`onnxruntime.SessionOptions` with the weights, which must live until a session is made."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(weight.array, weight.onnx_type)
        for weight in weights
    ]
    options.add_external_initializers([weight.name for weight in weights], values)
    return options


def promote_array(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """BF16, which numpy holds as uint16, as float32; anything else as it is."""
    if array.dtype == np.uint16:
        return bfloat16.to_float32(array.view(np.uint16))
    return array
