"""Mistral's own files, against transformers' maps and model and the Hugging Face format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from nemo_trt.digest import weights_digest
from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint

pytestmark = pytest.mark.model

# Written here once more, on purpose: mistral-inference's names and transformers'.
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Half-split rows to neighbouring pairs, as Mistral stores them."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def native_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """A Hugging Face checkpoint's tensors under Mistral's names, q and k in neighbouring pairs."""
    config = json.loads((checkpoint / "config.json").read_text())
    ours = {theirs: mine for mine, theirs in NAMES.items()} | {"model.norm": "norm"}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        layer, leaf = "", name.removesuffix(".weight")
        if name.startswith("model.layers."):
            _, _, number, leaf = leaf.split(".", 3)
            layer = f"layers.{number}."
        projection = leaf.rpartition(".")[2]
        if projection in heads:
            tensor = interleaved(tensor, heads[projection])
        tensors[f"{layer}{ours[leaf]}.weight"] = tensor.contiguous()
    return tensors


def write_native(checkpoint: Path, folder: Path) -> Path:
    """A Hugging Face checkpoint as Mistral would ship it, in two files."""
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = native_tensors(checkpoint)
    names = sorted(tensors)
    for number, part in enumerate((names[:7], names[7:])):
        save_file(
            {name: tensors[name] for name in part},
            folder / f"consolidated.{number:02}.safetensors",
        )
    (folder / "params.json").write_text(json.dumps(params(config)))
    return folder


@pytest.fixture
def native(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return write_native(tiny_checkpoint, tmp_path / "native")


def params(config: dict[str, Any]) -> dict[str, Any]:
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    return {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "head_dim": config["head_dim"],
        "hidden_dim": config["intermediate_size"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
        "rope_theta": theta,
        "max_seq_len": config["max_position_embeddings"],
    }


def test_the_same_model_as_in_the_hugging_face_format(native: Path, tiny_checkpoint: Path) -> None:
    ours, theirs = open_checkpoint(native), open_checkpoint(tiny_checkpoint)
    assert (ours.format, theirs.format) == ("mistral", "hf")
    assert dict(ours.config.tensors()) == dict(theirs.config.tensors())
    assert ours.config.rope_theta == theirs.config.rope_theta
    for name, tensor in theirs.tensors.items():
        np.testing.assert_array_equal(ours.tensors[name].read(), tensor.read(), name)
    assert weights_digest(ours.ordered_tensors) == weights_digest(theirs.ordered_tensors)


def test_any_range_of_rows_is_that_of_transformers_own_permutation(native: Path) -> None:
    config = open_checkpoint(native).config
    stored: dict[str, torch.Tensor] = {}
    for file in native.glob("*.safetensors"):
        stored |= load_file(file)
    processor = LlamaTensorProcessor({})
    for mine, theirs, heads in (
        ("wq", "q_proj", config.num_heads),
        ("wk", "k_proj", config.num_kv_heads),
    ):
        bits = stored[f"layers.1.attention.{mine}.weight"].view(torch.int16).numpy()
        expected = processor._reverse_permute_weights(bits, heads)
        tensor = open_checkpoint(native).tensors[f"model.layers.1.self_attn.{theirs}.weight"]
        for start, stop in ((0, 1), (3, 77), (5, 6), (0, tensor.shape[0])):
            rows = tensor.rows(start, stop)
            np.testing.assert_array_equal(rows.view(np.int16), expected[start:stop])


def test_half_split_attention_is_that_of_interleaved_pairs(native: Path) -> None:
    """Scores by Mistral's own complex rotation of stored rows, and by halves of ours."""
    config = open_checkpoint(native).config
    stored: dict[str, torch.Tensor] = {}
    for file in native.glob("*.safetensors"):
        stored |= load_file(file)
    half = config.head_dim // 2
    x = torch.randn(6, config.hidden_size, dtype=torch.float64)
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(6)[:, None] * frequencies  # (S, D / 2)
    turned = {}
    for mine, theirs in (("wq", "q_proj"), ("wk", "k_proj")):
        weight = stored[f"layers.0.attention.{mine}.weight"].double()
        pairs = (x @ weight.T).view(6, -1, half, 2)
        native_side = torch.view_as_complex(pairs.contiguous()) * torch.polar(
            torch.ones_like(angles), angles
        ).unsqueeze(1)
        bits = open_checkpoint(native).tensors[f"model.layers.0.self_attn.{theirs}.weight"].read()
        ours = torch.from_numpy(np.array(bits).view(np.int16)).view(torch.bfloat16).double()
        low, high = (x @ ours.T).view(6, -1, 2, half).unbind(2)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        turned[mine] = (
            torch.view_as_real(native_side).flatten(2),
            torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1),
        )
    for head in range(config.num_kv_heads):
        native_scores = turned["wq"][0][:, head] @ turned["wk"][0][:, head].T
        our_scores = turned["wq"][1][:, head] @ turned["wk"][1][:, head].T
        torch.testing.assert_close(our_scores, native_scores)


def test_its_bundle_computes_the_same_logits(
    native: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from nemo_trt.engines.ort_session import OrtSession
    from nemo_trt.export.bundle import export_bundle

    ids = np.random.default_rng(0).integers(0, 512, (1, 20))
    logits = []
    for number, source in enumerate((native, tiny_checkpoint)):
        bundle = tmp_path / f"bundle{number}"
        export_bundle(source, bundle)
        with OrtSession.open(bundle, max_batch=1, max_seq_len=64, threads=1) as session:
            logits.append(session.step(ids, np.zeros(1, int), np.arange(20)[None]).copy())
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0]).max() > 0


def test_validate_takes_it_as_the_reference(native: Path, tiny: Any) -> None:
    from nemo_trt.validate.reference import compute_reference
    from nemo_trt.validate.sequences import TokenSequence

    sequences = [TokenSequence(name="ids", tokens=tuple(range(3, 20)))]
    ours = compute_reference(open_checkpoint(native), sequences)
    theirs = compute_reference(open_checkpoint(tiny.checkpoint), sequences)
    np.testing.assert_array_equal(ours.logits["ids"], theirs.logits["ids"])


def test_it_cannot_be_exported_in_place(native: Path) -> None:
    from nemo_trt.errors import ExportError
    from nemo_trt.export.bundle import export_bundle

    with pytest.raises(ExportError, match="must be copy for a checkpoint of the format mistral"):
        export_bundle(native, native, weights="in-place")


def test_a_folder_with_both_is_read_by_name(native: Path, tiny_checkpoint: Path) -> None:
    for file in tiny_checkpoint.iterdir():
        shutil.copy(file, native)
    assert open_checkpoint(native).format == "hf"
    assert open_checkpoint(native, "mistral").format == "mistral"
    with pytest.raises(CheckpointError, match="--format must be one of hf, mistral"):
        open_checkpoint(native, "pickle")


def edit_params(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / "params.json").read_text())
        data.update(changes)
        kept = {key: value for key, value in data.items() if value != "absent"}
        (folder / "params.json").write_text(json.dumps(kept))

    return apply


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "consolidated.00.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def cut(folder: Path) -> None:
    path = folder / "consolidated.01.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


NORM = "layers.0.attention_norm.weight"
WQ = "layers.0.attention.wq.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, r"consolidated.01.safetensors must be \d+ bytes long"),
    "missing": (edit_weights(lambda t: t.pop(NORM)), r"lacks tensors: .*0.input_layernorm"),
    "extra": (
        edit_weights(lambda t: t.update(extra=torch.ones(2))),
        "holds extra, which a model of this family does not have",
    ),
    "layer too many": (
        edit_weights(lambda t: t.update({"layers.7.ffn_norm.weight": t[NORM].clone()})),
        "unexpected tensors: model.layers.7.post_attention_layernorm.weight",
    ),
    "dtype": (
        edit_weights(lambda t: t.update({NORM: t[NORM].to(torch.int32)})),
        f"Tensor {NORM} .* must be one of BF16",
    ),
    "rows of q": (
        edit_weights(lambda t: t.update({WQ: t[WQ][:-2].contiguous()})),
        f"{WQ} in .* must have .* rows by params.json",
    ),
    "columns of q": (
        edit_weights(lambda t: t.update({WQ: t[WQ][:, :-2].contiguous()})),
        r"wrong shape: model.layers.0.self_attn.q_proj.weight must be",
    ),
    "twice": (
        lambda folder: shutil.copy(
            folder / "consolidated.00.safetensors", folder / "consolidated.02.safetensors"
        ),
        r"consolidated.02.safetensors holds .*, which consolidated.00.safetensors holds",
    ),
    "empty": (write("consolidated.00.safetensors", b""), "it is truncated"),
    "huge header": (
        write("consolidated.00.safetensors", b"\xff" * 8 + b"{}"),
        "states a header of 18446744073709551615 bytes",
    ),
    "no UTF-8": (write("params.json", b'{"dim": "\xff"}'), "params.json must be JSON in UTF-8"),
    "key twice": (write("params.json", b'{"dim": 1, "dim": 2}'), "key 'dim' stands twice"),
    "no object": (write("params.json", b"[1]"), "must hold a JSON object, got list"),
    "no theta": (edit_params(rope_theta="absent"), "rope_theta in .* must be stated"),
    "no head_dim": (edit_params(head_dim="absent"), "head_dim in .* positive integer, got nothing"),
    "layers": (edit_params(n_layers=1), "unexpected tensors: model.layers.1"),
    "experts": (edit_params(moe={"num_experts": 8}), "moe in .* must be None"),
    "window": (edit_params(sliding_window=64), "sliding_window in .* an active window"),
    "quantised": (
        edit_params(quantization={"qformat_weight": "fp8_e4m3"}),
        "holds FP8 weights .* with --dequantise",
    ),
    "boolean": (edit_params(n_heads=True), "n_heads in .* must be a positive integer, got True"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_a_sentence(damage: str, native: Path) -> None:
    change, message = DAMAGES[damage]
    change(native)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(native, "mistral")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(native: Path) -> None:
    for file in native.glob("*.safetensors"):
        file.unlink()
    (native / "consolidated.00.pth").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"got consolidated.00.pth, a pickle"):
        open_checkpoint(native)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_headers_and_params_raise_nothing_else(native: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["params.json", "consolidated.00.safetensors"]))
    whole = (native / name).read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 3000) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    (native / name).write_bytes(damaged)
    try:
        open_checkpoint(native)
    except CheckpointError:
        pass
    finally:
        (native / name).write_bytes(whole)
