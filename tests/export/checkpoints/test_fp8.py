"""FP8 checkpoints: refused by name, or read as BF16; against PyTorch's own numbers."""

import json
import math
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
from torch import Tensor

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.precision import DType

from .test_mistral import native_tensors, params

pytestmark = pytest.mark.model

E4M3 = torch.float8_e4m3fn
Scale = Callable[[Tensor], Tensor]


def per_tensor(weight: Tensor) -> Tensor:
    return weight.float().abs().max() / 448


def per_row(weight: Tensor) -> Tensor:
    return (weight.float().abs().amax(1, keepdim=True) / 448).to(torch.bfloat16)


def per_block(weight: Tensor) -> Tensor:
    """Blocks of 48 x 80, which the tiny model's sizes are no multiples of."""
    rows, columns = (math.ceil(n / b) for n, b in zip(weight.shape, (48, 80), strict=True))
    found = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = weight[48 * i : 48 * i + 48, 80 * j : 80 * j + 80]
            found[i, j] = part.float().abs().max() / 448
    return found


def wide(scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale for every number."""
    scale = scale.float()
    if scale.dim() == 2 and scale.shape[1] > 1:
        scale = scale.repeat_interleave(48, 0)[: shape[0]]
        scale = scale.repeat_interleave(80, 1)[:, : shape[1]]
    return scale.expand(shape)


def group(**weights: Any) -> dict[str, Any]:
    kind = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, **weights}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": kind}}}


COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
KINDS: dict[str, tuple[dict[str, Any] | None, str, Scale, dict[str, Any]]] = {
    "AutoFP8": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        "weight_scale",
        per_tensor,
        {"input_scale": torch.tensor(0.5)},
    ),
    "fine-grained": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [48, 80]},
        "weight_scale_inv",
        per_block,
        {},
    ),
    "compressed-tensors": (
        {**COMPRESSED, **group(strategy="tensor")},
        "weight_scale",
        lambda weight: per_tensor(weight).reshape(1),
        {"input_scale": torch.ones(1)},
    ),
    "compressed-tensors, rows": (
        {**COMPRESSED, **group(strategy="channel")},
        "weight_scale",
        per_row,
        {},
    ),
    "compressed-tensors, blocks": (
        {**COMPRESSED, **group(strategy="block", block_structure=[48, 80])},
        "weight_scale",
        per_block,
        {},
    ),
    "ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        "weight_scale",
        per_tensor,
        {"input_scale": torch.tensor(0.5), "k_scale": torch.tensor(1.0)},
    ),
    "ModelOpt, a file of its own": (
        None,
        "weight_scale",
        per_tensor,
        {"input_scale": torch.tensor(0.5)},
    ),
}


def quantised(
    weights: dict[str, Tensor], suffix: str, scale_of: Scale, more: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of an FP8 file, and what they stand for in BF16."""
    stored, meant = {}, {}
    for name, weight in weights.items():
        if "_proj" not in name and "attention.w" not in name and "feed_forward" not in name:
            stored[name] = meant[name] = weight
            continue
        scale = scale_of(weight)
        stem = name.removesuffix(".weight")
        code = (weight.float() / wide(scale, weight.shape)).clamp(-448, 448).to(E4M3)
        stored |= {name: code, f"{stem}.{suffix}": scale}
        stored |= {f"{stem}.{key}": value.clone() for key, value in more.items()}
        meant[name] = (code.float() * wide(scale, weight.shape)).to(torch.bfloat16)
    return stored, meant


def write(kind: str, source: Path, folder: Path) -> dict[str, Tensor]:
    shutil.copytree(source, folder)
    config, suffix, scale_of, more = KINDS[kind]
    stored, meant = quantised(load_file(source / "model.safetensors"), suffix, scale_of, more)
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    if config is None:
        algorithm = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
        (folder / "hf_quant_config.json").write_text(json.dumps(algorithm))
    else:
        raw["quantization_config"] = config
    (folder / "config.json").write_text(json.dumps(raw))
    return meant


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_as_bf16_when_asked_for(
    kind: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    meant = write(kind, tiny_checkpoint, tmp_path / "fp8")
    with pytest.raises(CheckpointError, match="read them as BF16 with --dequantise"):
        open_checkpoint(tmp_path / "fp8")
    found = open_checkpoint(tmp_path / "fp8", dequantise=True)
    assert found.tensors.keys() == meant.keys() and found.stored_dtypes == (DType.BF16,)
    for name, tensor in found.tensors.items():
        wanted = meant[name].view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(tensor.read(), wanted, name)
        np.testing.assert_array_equal(tensor.rows(3, 29), wanted[3:29], name)


def write_native_fp8(checkpoint: Path, folder: Path) -> dict[str, Tensor]:
    """Mistral's own FP8 files; what the weights stand for, under Mistral's names."""
    config = json.loads((checkpoint / "config.json").read_text())
    more = {"qscale_act": torch.tensor(1.0)}
    stored, meant = quantised(native_tensors(checkpoint), "qscale_weight", per_row, more)
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / "consolidated.safetensors")
    raw = {**params(config), "quantization": {"qformat_weight": "fp8_e4m3"}}
    (folder / "params.json").write_text(json.dumps(raw))
    return meant


def test_mistrals_own_fp8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    meant = write_native_fp8(tiny_checkpoint, tmp_path)
    with pytest.raises(CheckpointError, match="with --dequantise"):
        open_checkpoint(tmp_path)
    found = open_checkpoint(tmp_path, dequantise=True)
    half = config["head_dim"] // 2
    q = meant["layers.1.attention.wq.weight"].view(-1, half, 2, config["hidden_size"])
    wanted = q.transpose(1, 2).reshape(-1, config["hidden_size"])
    np.testing.assert_array_equal(
        found.tensors["model.layers.1.self_attn.q_proj.weight"].read(),
        wanted.contiguous().view(torch.int16).numpy().view(np.uint16),
    )


def test_its_bundle_validates(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from nemo_trt.cli.main import run

    write("ModelOpt", tiny_checkpoint, tmp_path / "fp8")
    arguments = ["export", str(tmp_path / "fp8"), str(tmp_path / "bundle")]
    assert run(arguments) == 2
    assert run([*arguments, "--dequantise"]) == 0
    assert run(["validate", str(tmp_path / "bundle")]) == 0
    write("AutoFP8", tiny_checkpoint, tmp_path / "same")  # the same numbers, said another way
    assert run(["validate", str(tmp_path / "bundle"), "--reference", str(tmp_path / "same")]) == 0


def config_of(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        raw["quantization_config"] = values
        (folder / "config.json").write_text(json.dumps(raw))

    return apply


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return apply


O_SCALE = "model.layers.0.self_attn.o_proj.weight_scale"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "4 bits": (
        config_of(**COMPRESSED, **group(num_bits=4, type="int")),
        r"compressed-tensors \(4-bit int\)', which is not read",
    ),
    "NVFP4": (
        config_of(quant_method="modelopt", quant_algo="NVFP4"),
        r"modelopt \(NVFP4\)', which is not read",
    ),
    "AWQ": (config_of(quant_method="awq"), "'awq', which is not read"),
    "no scale": (tensors(lambda t: t.pop(O_SCALE)), "o_proj.weight in .* one scale beside it"),
    "a scale alone": (
        tensors(lambda t: t.update({"lm_head.weight_scale": torch.ones(1)})),
        "holds lm_head.weight_scale, a scale of no FP8 weight",
    ),
    "shape": (
        tensors(lambda t: t.update({O_SCALE: torch.ones(2, 3)})),
        "weight_block_size of .* must be two positive integers",
    ),
    "negative": (
        tensors(lambda t: t.update({O_SCALE: torch.tensor(-1.0)})),
        "must be positive and finite",
    ),
    "no number": (
        tensors(lambda t: t.update({O_SCALE: torch.tensor(float("nan"))})),
        "must be positive and finite",
    ),
    "dtype": (
        tensors(lambda t: t.update({O_SCALE: torch.ones(1).to(E4M3)})),
        "weight_scale in .* must be a float, got fp8",
    ),
    "nothing stated": (
        lambda folder: (folder / "config.json").write_text(
            json.dumps(
                {
                    key: value
                    for key, value in json.loads((folder / "config.json").read_text()).items()
                    if key != "quantization_config"
                }
            )
        ),
        "although its config.json has neither",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_a_sentence(
    damage: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write("AutoFP8", tiny_checkpoint, tmp_path / "fp8")
    change, message = DAMAGES[damage]
    change(tmp_path / "fp8")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "fp8", dequantise=True)
    assert "\n" not in str(caught.value)


def test_other_formats_have_no_fp8_to_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="--dequantise is for FP8 weights of hf and mistral"):
        open_checkpoint(tmp_path / "x.gguf", dequantise=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_configs_and_headers_raise_nothing_else(
    tiny_checkpoint: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "fp8"
    if not folder.exists():
        write("compressed-tensors", tiny_checkpoint, folder)
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    whole = (folder / name).read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 4000) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(damaged)
    try:
        open_checkpoint(folder, "hf", keep_fp8=True)
    except CheckpointError:
        pass
    finally:
        (folder / name).write_bytes(whole)
