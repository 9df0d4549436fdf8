"""Chooses who reads a checkpoint's weights for the reference."""

from typing import Any

import torch

from nemo_trt.errors import MachineError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.precision import DType

from .source import WeightSource

_DTYPES = {
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP32: torch.float32,
}


def open_weights(checkpoint: Checkpoint, model: Any) -> WeightSource:
    """The weights of a checkpoint, its adapters merged, read by packages that are not ours.

    Hugging Face and Mistral files by safetensors, GGUF by gguf, LoRA adapters by PEFT; what has to
    be renamed or turned around, by transformers. No other package reads NeMo's files.

    Args:
        model: transformers' model of the checkpoint, on the meta device.

    Raises:
        CheckpointError: a package refuses the files.
        MachineError: PEFT is needed and is not installed.
    """
    source = _open(checkpoint, model)
    if not checkpoint.adapters:
        return source
    try:
        from .adapters import MergedWeights
    except ImportError as error:
        raise MachineError(
            "A bundle with LoRA adapters must be validated with PEFT's own merge, and peft is not "
            "installed. Run pip install 'nemo-trt[validate]'."
        ) from error
    return MergedWeights(source, checkpoint.adapters)


def _open(checkpoint: Checkpoint, model: Any) -> WeightSource:
    dtypes = {name: _DTYPES[ref.dtype] for name, ref in checkpoint.tensors.items()}
    match checkpoint.format:
        case "hf":
            from .huggingface import open_huggingface

            return open_huggingface(checkpoint.path, dtypes)
        case "mistral":
            from .mistral import MistralWeights

            return MistralWeights(checkpoint.path, checkpoint.config, dtypes)
        case "gguf":
            from .gguf import GgufWeights

            return GgufWeights(checkpoint.path, checkpoint.config, dtypes, model)
        case _:
            from .own import OwnWeights

            return OwnWeights(checkpoint)
