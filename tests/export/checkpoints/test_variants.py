"""Checkpoints as tools leave them: read as transformers reads them, or refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint

pytestmark = pytest.mark.model
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14801223\n"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})


def with_head(tensors: dict[str, torch.Tensor], moved: float = 0.0) -> dict[str, torch.Tensor]:
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += moved
    return {**tensors, "lm_head.weight": head}


def test_a_tied_head_that_is_stored_and_equal_is_read(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    configure(folder, tie_word_embeddings=True)
    rewrite(folder, with_head)
    tensors = open_checkpoint(folder).tensors
    assert "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_tied_head_that_differs_is_refused(folder: Path) -> None:
    configure(folder, tie_word_embeddings=True)
    rewrite(folder, lambda tensors: with_head(tensors, 1.0))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight in .* must equal .* tie_word"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "prefix", ["language_model.", "_orig_mod.", "module.", "base_model.model.", "module._orig_mod."]
)
def test_prefixes_of_wrappers_are_understood(prefix: str, folder: Path) -> None:
    before = {name: tensor.read() for name, tensor in open_checkpoint(folder).tensors.items()}
    rewrite(folder, lambda tensors: {prefix + name: t for name, t in tensors.items()})
    found = open_checkpoint(folder)
    assert found.weight_files == ()
    assert {name: tensor.read().tobytes() for name, tensor in found.tensors.items()} == {
        name: values.tobytes() for name, values in before.items()
    }


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])  # last and first in the file's order
def test_a_prefix_of_some_names_is_refused(prefix: str, folder: Path) -> None:
    rewrite(folder, lambda t: {(prefix if "norm" in n else "") + n: v for n, v in t.items()})
    with pytest.raises(CheckpointError, match="lacks tensors"):
        open_checkpoint(folder)


def fp8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if "proj" in name:
            scale = tensor.float().abs().max() / 448
            found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            found[name.replace(".weight", ".weight_scale")] = scale.reshape(1)
        else:
            found[name] = tensor
    return found


def test_compression_config_is_read_as_quantization_config(folder: Path) -> None:
    rewrite(folder, fp8)
    group = {"weights": {"num_bits": 8, "type": "float"}, "targets": ["Linear"]}
    stated = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    configure(folder, quantization_config=stated)
    expected = open_checkpoint(folder, dequantise=True).tensors
    for changed in (stated, {"config_groups": stated["config_groups"]}):
        configure(folder, quantization_config=None, compression_config=changed)
        found = open_checkpoint(folder, dequantise=True).tensors
        assert all((found[n].read() == expected[n].read()).all() for n in expected)
    configure(folder, compression_config={"config_groups": {"g": {"weights": {"num_bits": 4}}}})
    with pytest.raises(CheckpointError, match=r"compression_config of .*4-bit"):
        open_checkpoint(folder)


def test_fp8_weights_that_no_config_describes_are_named(folder: Path) -> None:
    rewrite(folder, fp8)
    for options in ({}, {"dequantise": True}, {"keep_fp8": True}):
        with pytest.raises(CheckpointError, match=r"FP8 weights \(such as .* neither"):
            open_checkpoint(folder, **options)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "x.gguf", "x.nemo"]
)
def test_a_git_lfs_pointer_is_named(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    path = folder / name if name.startswith("x.") else folder
    with pytest.raises(CheckpointError, match=rf"{name} must be the file itself, got a Git LFS"):
        open_checkpoint(path)


def test_a_tokenizer_that_is_a_link_out_of_the_folder_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json must be a file of its own folder"):
        open_checkpoint(folder)


def test_the_links_of_the_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--ORG--NAME" / "snapshots" / "0123abc"
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in [*folder.glob("*.*"), folder / "tokenizer.json"]:
        (blobs / file.name).write_bytes(file.read_bytes() if file.exists() else b"{}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    found = open_checkpoint(snapshot)
    assert [file.name for file in found.tokenizer_files] == ["tokenizer.json"]


INFINITE, HUGE = float("inf"), 10**400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": INFINITE}, "rope_theta .* must be a positive number"),
        ({"rope_theta": float("nan")}, "rope_theta .* must be a positive number"),
        ({"rope_theta": HUGE}, "rope_theta .* must be a positive number"),
        ({"rms_norm_eps": INFINITE}, "rms_norm_eps .* must be a positive number"),
        ({"rms_norm_eps": HUGE}, "rms_norm_eps .* must be a positive number"),
        ({"eos_token_id": -1}, "eos_token_id in .* must be a token id"),
        ({"bos_token_id": [1, 2]}, "bos_token_id in .* must be a token id"),
        ({"eos_token_id": 512}, "eos_token_ids must be of the vocabulary, 0 to 511, got 512"),
        ({"eos_token_id": [2, HUGE]}, "eos_token_ids must be of the vocabulary"),
        ({"bos_token_id": 512}, "bos_token_id must be of the vocabulary"),
        ({"hidden_size": HUGE}, "hidden_size must be at most"),
        ({"max_position_embeddings": HUGE}, "max_position_embeddings must be at most"),
    ],
)
def test_numbers_that_no_model_has_are_refused(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    configure(folder, rope_parameters=None, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 600
