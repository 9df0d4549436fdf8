"""A Hugging Face model as Megatron-core and NeMo hold it; files by PyTorch's own writers.

The packing is written here once more, head by head, and not taken from the reader.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

LAYER = "decoder.layers."


def settings(checkpoint: Path) -> dict[str, Any]:
    """model_config.yaml of NeMo 1."""
    config = json.loads((checkpoint / "config.json").read_text())
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    return {
        "mcore_gpt": True,
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": config["head_dim"],
        "encoder_seq_length": config["max_position_embeddings"],
        "max_position_embeddings": "${.encoder_seq_length}",
        "normalization": "rmsnorm",
        "layernorm_epsilon": config["rms_norm_eps"],
        "activation": "fast-swiglu",
        "bias": False,
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": theta,
        "share_embeddings_and_output_weights": False,
        "apply_query_key_layer_scaling": True,
        "make_vocab_size_divisible_by": 128,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "tokenizer": {"library": "tiktoken", "type": None, "vocab_file": None},
    }


def packed(checkpoint: Path) -> dict[str, Tensor]:
    """Megatron-core's tensors, layers apart, without a prefix."""
    config = settings(checkpoint)
    heads, groups, size = (
        config[n] for n in ("num_attention_heads", "num_query_groups", "kv_channels")
    )
    theirs = load_file(checkpoint / "model.safetensors")
    ours = {
        "embedding.word_embeddings.weight": theirs["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": theirs["model.norm.weight"],
        "output_layer.weight": theirs["lm_head.weight"],
    }
    for layer in range(config["num_layers"]):
        source, target = f"model.layers.{layer}.", f"{LAYER}{layer}."
        q, k, v = (theirs[f"{source}self_attn.{p}_proj.weight"] for p in "qkv")
        rows = []
        for group in range(groups):
            each = heads // groups
            queries = range(group * each, (group + 1) * each)
            rows += [q[head * size : (head + 1) * size] for head in queries]
            rows.append(k[group * size : (group + 1) * size])
            rows.append(v[group * size : (group + 1) * size])
        fc1 = [theirs[f"{source}mlp.{p}_proj.weight"] for p in ("gate", "up")]
        ours |= {
            f"{target}self_attention.linear_qkv.weight": torch.cat(rows),
            f"{target}self_attention.linear_qkv.layer_norm_weight": theirs[
                f"{source}input_layernorm.weight"
            ],
            f"{target}self_attention.linear_proj.weight": theirs[
                f"{source}self_attn.o_proj.weight"
            ],
            f"{target}mlp.linear_fc1.weight": torch.cat(fc1),
            f"{target}mlp.linear_fc1.layer_norm_weight": theirs[
                f"{source}post_attention_layernorm.weight"
            ],
            f"{target}mlp.linear_fc2.weight": theirs[f"{source}mlp.down_proj.weight"],
        }
    return ours


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers along a first axis, as Megatron's homogeneous distributed checkpoints have them."""
    found = {name: one for name, one in tensors.items() if not name.startswith(LAYER)}
    leaves = {n.split(".", 3)[3] for n in tensors if n.startswith(LAYER)}
    for leaf in sorted(leaves):
        layers = [n for n in tensors if n.startswith(LAYER) and n.split(".", 3)[3] == leaf]
        layers.sort(key=lambda name: int(name.split(".")[2]))
        found[f"{LAYER}{leaf}"] = torch.stack([tensors[name] for name in layers])
    return found


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}


def save_dist(state: dict[str, Any], folder: Path) -> None:
    """By PyTorch's own writer; a bytes entry stands for Transformer Engine's extra state."""
    import torch.distributed.checkpoint as dcp

    extra = {"model.decoder.layers.self_attention.linear_qkv._extra_state/shard_0_2": io.BytesIO()}
    dcp.save({**state, **extra}, storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')


def save_zarr(state: dict[str, Tensor], folder: Path, chunk_rows: int) -> None:
    """As Megatron's writer left them: raw chunks, the last one padded, BF16 called bfloat16."""
    for key, tensor in state.items():
        (folder / key).mkdir(parents=True)
        chunk = [min(chunk_rows, tensor.shape[0]), *tensor.shape[1:]]
        (folder / key / ".zarray").write_text(
            json.dumps(
                {
                    "zarr_format": 2,
                    "shape": list(tensor.shape),
                    "chunks": chunk,
                    "dtype": "bfloat16",
                    "compressor": None,
                    "fill_value": None,
                    "filters": None,
                    "order": "C",
                }
            )
        )
        for number, start in enumerate(range(0, tensor.shape[0], chunk[0])):
            whole = torch.zeros(chunk, dtype=tensor.dtype)
            part = tensor[start : start + chunk[0]]
            whole[: len(part)] = part
            name = ".".join([str(number), *["0"] * (tensor.dim() - 1)])
            (folder / key / name).write_bytes(whole.view(torch.int16).numpy().tobytes())


def split_ranks(
    tensors: dict[str, Tensor], folder: Path, width: int, stages: int, prefix: str = "model."
) -> None:
    """Tensor- and pipeline-parallel files of torch.save, layers of a stage counted from 0."""
    layers = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith(LAYER))
    each = layers // stages
    for stage in range(stages):
        for rank in range(width):
            state = {}
            for name, tensor in tensors.items():
                if name.startswith(LAYER):
                    _, _, layer, leaf = name.split(".", 3)
                    if int(layer) // each != stage:
                        continue
                    target = f"{LAYER}{int(layer) % each}.{leaf}"
                else:
                    first = name.startswith("embedding")
                    if stage != (0 if first else stages - 1):
                        continue
                    target = name
                if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
                    part = tensor.chunk(width, 1)[rank]
                elif name.endswith("linear_fc1.weight"):
                    gate, up = tensor.chunk(2)
                    part = torch.cat([gate.chunk(width)[rank], up.chunk(width)[rank]])
                elif tensor.dim() == 2:
                    part = tensor.chunk(width)[rank]
                else:
                    part = tensor
                state[f"{prefix}{target}"] = part.clone()
            name = f"mp_rank_{rank:02}" if stages == 1 else f"tp_rank_{rank:02}_pp_rank_{stage:03}"
            (folder / name).mkdir(parents=True)
            torch.save(state, folder / name / "model_weights.ckpt")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))


def pack(folder: Path, target: Path, mode: str = "w:") -> Path:
    """A .nemo archive, its members called ./name as NeMo calls them."""
    with tarfile.open(target, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, arcname=".")
    return target
