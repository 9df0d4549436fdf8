"""Readers that are not ours, against ours: equal weights, and a fault of ours fails validation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import Checkpoint, open_checkpoint, open_reference
from nemo_trt.export.checkpoints import gguf as own_gguf
from nemo_trt.export.checkpoints import huggingface as own_huggingface
from nemo_trt.export.checkpoints import mistral as own_mistral
from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters
from nemo_trt.export.checkpoints.lora_config import AdapterConfig
from nemo_trt.export.tensors import load
from nemo_trt.validate.reading import open_weights
from nemo_trt.validate.reference import _empty_model
from tests.export.checkpoints import test_fp8, test_gguf
from tests.export.checkpoints.conftest import dist
from tests.export.checkpoints.test_mistral import write_native
from tests.validate.judge import Judge

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def as_hf(source: Path, target: Path) -> Path:
    return source


def sharded(source: Path, target: Path) -> Path:
    """Two files and an index."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, target / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def wrapped(source: Path, target: Path) -> Path:
    """Under the prefixes that torch.compile and DistributedDataParallel leave."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    renamed = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, target / "model.safetensors")
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def mistral_fp8(source: Path, target: Path) -> Path:
    target.mkdir()
    test_fp8.write_native_fp8(source, target)
    return target


def as_gguf(source: Path, target: Path) -> Path:
    return test_gguf.write(source, target.with_suffix(".gguf"), gguf.GGMLQuantizationType.BF16)


def as_nemo(source: Path, target: Path) -> Path:
    target.mkdir()
    return dist(source, target)


FORMATS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "one file": (as_hf, "safetensors"),
    "two files": (sharded, "safetensors"),
    "wrapped": (wrapped, "safetensors"),
    "mistral": (write_native, "transformers"),
    "mistral, FP8": (mistral_fp8, "transformers"),
    "gguf": (as_gguf, "gguf"),
    "nemo": (as_nemo, "nemo-trt's own reader"),
}


def weights_of(checkpoint: Checkpoint) -> Any:
    return open_weights(checkpoint, _empty_model(checkpoint))


def require_equal(checkpoint: Checkpoint, *, different: float = 0.0) -> None:
    """Every weight, and some rows of it, as our reader has them."""
    source = weights_of(checkpoint)
    for name, ref in checkpoint.tensors.items():
        ours, theirs = load(ref), source.weight(name)
        assert theirs.dtype == ours.dtype and theirs.shape == ours.shape, name
        assert (theirs != ours).float().mean() <= different, name
        if ours.dim() == 2 and ".layers." not in name:
            for rows in (range(3, 9), [5, 1, 5]):
                assert (source.rows(name, rows) != ours[list(rows)]).float().mean() <= different


@pytest.mark.parametrize("form", FORMATS)
def test_another_reader_reads_the_same_weights(
    form: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write, reader = FORMATS[form]
    checkpoint = open_reference(write(tiny_checkpoint, tmp_path / "written"))
    require_equal(checkpoint)
    source = weights_of(checkpoint)
    assert reader in source.reader and source.independent == (form != "nemo")


@pytest.mark.parametrize("kind", test_fp8.KINDS)
def test_fp8_weights_are_codes_times_scales(
    kind: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    test_fp8.write(kind, tiny_checkpoint, tmp_path / "fp8")
    require_equal(open_reference(tmp_path / "fp8"))


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.export.checkpoints.test_lora import peft_model

    folder = tmp_path_factory.mktemp("adapter")
    peft_model(tiny_checkpoint, 3, **LORA).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_pefts_merge_is_ours(weight: float, adapter: Path, tiny_checkpoint: Path) -> None:
    base = open_checkpoint(tiny_checkpoint)
    merged = merge_adapters(base, [Adapter(adapter, weight)])
    require_equal(merged, different=1e-3)  # sums of another order may round to the other side
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(weights_of(merged).weight(name), load(base.tensors[name]))


@pytest.mark.parametrize("kind", ["head", "embedding", "whole head"])
def test_so_it_is_for_what_is_read_in_rows(
    kind: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from tests.export.checkpoints.test_lora import KINDS, peft_model

    peft_model(tiny_checkpoint, 5, **KINDS[kind]).save_pretrained(tmp_path)
    require_equal(
        merge_adapters(open_checkpoint(tiny_checkpoint), [Adapter(tmp_path)]), different=1e-3
    )


def left_interleaved(module: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(module, "half_split_index", lambda heads, size: np.arange(heads * size))

    return plant


def gate_and_up_exchanged_in_gguf(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(own_gguf.LAYER_NAMES, "ffn_gate", "mlp.up_proj")
    patch.setitem(own_gguf.LAYER_NAMES, "ffn_up", "mlp.gate_proj")


def gate_and_up_exchanged_in_huggingface(patch: pytest.MonkeyPatch) -> None:
    read = own_huggingface.read_layout

    def exchanged(path: Path) -> Any:
        found = dict(read(path))
        for name in [name for name in found if "gate_proj" in name]:
            other = name.replace("gate_proj", "up_proj")
            found[name], found[other] = found[other], found[name]
        return found

    patch.setattr(own_huggingface, "read_layout", exchanged)


def alpha_in_place_of_alpha_over_r(patch: pytest.MonkeyPatch) -> None:
    scaling = AdapterConfig.scaling
    patch.setattr(
        AdapterConfig, "scaling", lambda self, module, rank: scaling(self, module, rank) * rank
    )


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "q and k left interleaved, mistral": ("mistral", left_interleaved(own_mistral)),
    "q and k left interleaved, gguf": ("gguf", left_interleaved(own_gguf)),
    "gate and up exchanged, gguf": ("gguf", gate_and_up_exchanged_in_gguf),
    "gate and up exchanged, hf": ("one file", gate_and_up_exchanged_in_huggingface),
    "alpha in place of alpha / r": ("lora", alpha_in_place_of_alpha_over_r),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_our_reader_fails_validation(
    name: str,
    tiny_checkpoint: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form, plant = FAULTS[name]
    path = tiny_checkpoint
    if form in FORMATS:
        path = FORMATS[form][0](tiny_checkpoint, tmp_path / "written")
    adapters = [Adapter(adapter)] if form == "lora" else []
    plant(monkeypatch)  # for the export and for the validation, as in life
    export_bundle(merge_adapters(open_checkpoint(path), adapters), tmp_path / "bundle")
    judge = Judge(path, tmp_path / "bundle", adapters=adapters)
    assert judge(tmp_path / "bundle").verdict == "fail"
    monkeypatch.undo()
    export_bundle(merge_adapters(open_checkpoint(path), adapters), tmp_path / "sound")
    assert judge(tmp_path / "sound").verdict == "pass"
