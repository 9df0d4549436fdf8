"""Writes Mistral's own format: params.json and consolidated.safetensors."""

from pathlib import Path

from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.checkpoints.derived import gathered, interleaved_index
from nemo_trt.export.checkpoints.mistral import PARAMS, native_name, params_of
from nemo_trt.export.weights import write_tensors
from nemo_trt.progress import Progress
from nemo_trt.tensors import LazyTensor, renamed

from .huggingface import write_json


def write(checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    """Write params.json, and the weights with rows of q and k as interleaved pairs."""
    config = checkpoint.config
    orders = {
        "q_proj": interleaved_index(config.num_heads, config.head_dim),
        "k_proj": interleaved_index(config.num_kv_heads, config.head_dim),
    }

    def native(tensor: LazyTensor) -> LazyTensor:
        name = native_name(tensor.name)
        order = orders.get(tensor.name.split(".")[-2])
        return renamed(tensor, name) if order is None else gathered(name, tensor, order)

    progress.phase("write the weights", checkpoint.num_bytes, "bytes")
    tensors = [native(tensor) for tensor in checkpoint.ordered_tensors]
    write_tensors(tensors, folder / "consolidated.safetensors", progress)
    write_json(folder / PARAMS, params_of(config))
