"""The tiny model in every form that NeMo wrote."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from . import megatron


def dist(checkpoint: Path, folder: Path) -> Path:
    megatron.write_config(folder, megatron.settings(checkpoint))
    state = megatron.prefixed(megatron.stacked(megatron.packed(checkpoint)), "model.")
    megatron.save_dist(state, folder / "model_weights")
    return folder


def dist_by_layer(checkpoint: Path, folder: Path) -> Path:
    """Layers apart, gate and up under names of their own: newer Megatron."""
    megatron.write_config(folder, megatron.settings(checkpoint))
    state = megatron.packed(checkpoint)
    for name in [name for name in state if name.endswith("linear_fc1.weight")]:
        state[f"{name}_w"], state[f"{name}_v"] = state.pop(name).chunk(2)
    megatron.save_dist(megatron.prefixed(state, "model."), folder / "model_weights")
    return folder


def nemo2(checkpoint: Path, folder: Path) -> Path:
    state = megatron.prefixed(megatron.stacked(megatron.packed(checkpoint)), "module.")
    megatron.save_dist(state, folder / "weights")
    config = {**megatron.settings(checkpoint), "_target_": "nemo.MistralNeMoConfig12B"}
    config["seq_length"] = config.pop("encoder_seq_length")
    del config["max_position_embeddings"], config["tokenizer"]
    (folder / "context").mkdir()
    (folder / "context" / "model.yaml").write_text(
        yaml.safe_dump({"_target_": "nemo.GPTModel", "config": config})
        + "odd: !!python/tuple [1, 2]\n"
    )
    return folder


def zarr(checkpoint: Path, folder: Path) -> Path:
    megatron.write_config(folder, megatron.settings(checkpoint))
    state = megatron.prefixed(megatron.stacked(megatron.packed(checkpoint)), "model.")
    megatron.save_zarr(state, folder / "model_weights", chunk_rows=1)
    return folder


def zarr_ragged(checkpoint: Path, folder: Path) -> Path:
    megatron.write_config(folder, megatron.settings(checkpoint))
    state = megatron.prefixed(megatron.packed(checkpoint), "model.")
    megatron.save_zarr(state, folder / "model_weights", chunk_rows=37)
    return folder


def single(checkpoint: Path, folder: Path) -> Path:
    megatron.write_config(folder, megatron.settings(checkpoint))
    state: dict[str, Any] = megatron.prefixed(megatron.packed(checkpoint), "model.")
    state["model.decoder.layers.0.mlp.linear_fc1._extra_state"] = io.BytesIO(b"fp8")
    state["model.decoder.layers.1.mlp.linear_fc1._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    torch.save(state, folder / "model_weights.ckpt")
    return folder


def ranks(width: int, stages: int) -> Callable[[Path, Path], Path]:
    def write(checkpoint: Path, folder: Path) -> Path:
        config = megatron.settings(checkpoint)
        config["tensor_model_parallel_size"] = width
        config["pipeline_model_parallel_size"] = stages
        megatron.write_config(folder, config)
        megatron.split_ranks(megatron.packed(checkpoint), folder, width, stages)
        return folder

    return write


FORMS = {
    "torch_dist": dist,
    "torch_dist, layers apart": dist_by_layer,
    "NeMo 2": nemo2,
    "zarr": zarr,
    "zarr, ragged chunks": zarr_ragged,
    "one file": single,
    "TP 2": ranks(2, 1),
    "TP 2, PP 2": ranks(2, 2),
}


@pytest.fixture(scope="session")
def written(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("nemo")
    return {
        name: write(tiny_checkpoint, root / str(number))
        for number, (name, write) in enumerate(FORMS.items())
    }


@pytest.fixture(scope="session")
def archive(written: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return megatron.pack(written["torch_dist"], tmp_path_factory.mktemp("tar") / "x.nemo")
