"""The sample model as the same language model with wider heads, such as Mistral-NeMo's 128."""

import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file


def widen_heads(source: Path, target: Path, head_dim: int) -> Path:
    """Write a Hugging Face checkpoint again with heads padded from D to `head_dim`.

    Dimension i of either half of a head stays dimension i of that half, and theta becomes
    theta ** (head_dim / D), so that theta ** (-2 i / D) is its frequency as before. The padding is
    zero. The query weights are multiplied by sqrt(head_dim / D), against 1 / sqrt(head_dim).
    """
    config = json.loads((source / "config.json").read_text())
    old, hidden = config["head_dim"], config["hidden_size"]
    factor = head_dim / old
    kept = np.r_[: old // 2, head_dim // 2 : head_dim // 2 + old // 2]
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        values = weight.astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            heads = values.reshape(-1, old, hidden)
            wide = np.zeros((len(heads), head_dim, hidden), np.float32)
            wide[:, kept] = heads * (math.sqrt(factor) if "q_proj" in name else 1)
            tensors[name] = wide.reshape(-1, hidden).astype(ml_dtypes.bfloat16)
        elif name.endswith("o_proj.weight"):
            heads = values.reshape(hidden, -1, old)
            wide = np.zeros((hidden, heads.shape[1], head_dim), np.float32)
            wide[:, :, kept] = heads
            tensors[name] = wide.reshape(hidden, -1).astype(ml_dtypes.bfloat16)
    target.mkdir()
    config.update(head_dim=head_dim, rope_theta=config["rope_theta"] ** factor)
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(source / name, target / name)
    return target
