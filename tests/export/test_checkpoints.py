"""Reading Hugging Face checkpoints: what is accepted, and every refusal in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.precision import DType

pytestmark = pytest.mark.unit

Config = dict[str, Any]


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own that a test may damage."""
    target = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, target)
    return target


def edit(path: Path, change: Callable[[Config], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def save(folder: Path, tensors: dict[str, Any], name: str = "model.safetensors") -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / name)


def shard(folder: Path) -> Path:
    """Split the one file in two with an index; return the index."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save(folder, {name: tensors[name] for name in part}, file)
        weight_map.update(dict.fromkeys(part, file))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_lazy_tensors_are_those_that_the_library_reads(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    expected = tensors_of(folder)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, ref in checkpoint.tensors.items():
        bits = expected[name].view(__import__("torch").int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(ref.read(), bits)
        assert (ref.dtype, ref.shape) == (DType.BF16, tuple(expected[name].shape))


def test_shards_are_read_by_their_index_alone(folder: Path) -> None:
    whole = open_checkpoint(folder)
    shard(folder)
    (folder / "consolidated.safetensors").write_bytes(b"not looked at")
    sharded = open_checkpoint(folder)
    assert sharded.config == whole.config
    assert {n: r.shape for n, r in sharded.tensors.items()} == {
        n: r.shape for n, r in whole.tensors.items()
    }
    assert len(sharded.weight_files) == 2


@pytest.mark.model
def test_transformers_own_checkpoints_are_read(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
    }
    llama = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, rope_theta=5e4))
    llama.save_pretrained(tmp_path / "llama")
    read = open_checkpoint(tmp_path / "llama")
    assert (read.config.tied_head, read.config.rope_theta, read.config.head_dim) == (True, 5e4, 8)
    assert read.stored_dtypes == (DType.FP32,)
    mistral = MistralForCausalLM(MistralConfig(**sizes, head_dim=16, sliding_window=None)).half()
    mistral.save_pretrained(tmp_path / "mistral")
    read = open_checkpoint(tmp_path / "mistral")
    assert (read.config.tied_head, read.config.head_dim) == (False, 16)
    assert read.stored_dtypes == (DType.FP16,)


@pytest.mark.parametrize("place", ["top", "rope_parameters"])
def test_theta_is_read_where_either_version_of_transformers_writes_it(
    place: str, folder: Path
) -> None:
    def move(config: Config) -> None:
        theta = config.pop("rope_theta")
        if place == "top":
            config["rope_theta"] = theta
        else:
            config["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}

    edit(folder / "config.json", move)
    assert open_checkpoint(folder).config.rope_theta == 1e6


def test_end_tokens_of_both_configs_count(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert open_checkpoint(folder).config.eos_token_ids == (2, 7)


def set_to(**fields: Any) -> Callable[[Config], Any]:
    return lambda config: config.update(fields)


def without(name: str) -> Callable[[Config], Any]:
    return lambda config: config.pop(name)


REFUSED_CONFIGS: dict[str, tuple[Callable[[Config], Any], str]] = {
    "another architecture": (set_to(architectures=["GPT2LMHeadModel"]), "architectures.*Mistral"),
    "no architecture": (without("architectures"), "architectures"),
    "an active sliding window": (set_to(sliding_window=4096), "sliding_window"),
    "a sliding window left to a default": (without("sliding_window"), "sliding_window.*4096"),
    "rope scaling": (set_to(rope_scaling={"type": "linear", "factor": 2}), "rope_scaling"),
    "yarn": (set_to(rope_parameters={"rope_type": "yarn", "rope_theta": 1e6}), "rope_parameters"),
    "no theta": (without("rope_theta"), "rope_theta"),
    "two thetas": (set_to(rope_parameters={"rope_theta": 1e4}), "rope_theta.*agree"),
    "attention bias": (set_to(attention_bias=True), "attention_bias"),
    "mlp bias": (set_to(mlp_bias=True), "mlp_bias"),
    "a quantisation": (set_to(quantization_config={"quant_method": "awq"}), "awq"),
    "an odd quantisation": (set_to(quantization_config="fp4"), "fp4"),
    "another activation": (set_to(hidden_act="gelu"), "hidden_act"),
    "no eps": (without("rms_norm_eps"), "rms_norm_eps"),
    "a layer count in words": (set_to(num_hidden_layers="two"), "num_hidden_layers"),
    "a negative size": (set_to(hidden_size=-1), "hidden_size"),
    "a wrong head_dim": (set_to(head_dim=20), "q_proj.*wrong|wrong.*q_proj|q_proj"),
    "too many layers": (set_to(num_hidden_layers=3), r"lacks.*layers\.2"),
    "too few layers": (set_to(num_hidden_layers=1), r"unexpected.*layers\.1"),
    "a tied head beside a stored one": (set_to(tie_word_embeddings=True), "lm_head.*must equal"),
    "kv heads that do not divide": (set_to(num_key_value_heads=3), "multiple"),
    "an end token in words": (set_to(eos_token_id="</s>"), "eos_token_id"),
    "a flag in words": (set_to(tie_word_embeddings="no"), "tie_word_embeddings"),
}


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_a_config_is_refused_in_words(name: str, folder: Path) -> None:
    change, words = REFUSED_CONFIGS[name]
    edit(folder / "config.json", change)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_head_dim_may_be_absent_when_the_quotient_is_right(folder: Path) -> None:
    edit(folder / "config.json", without("head_dim"))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight must be \[160, 160\]"):
        open_checkpoint(folder)  # here it is not: 160 / 8 = 20, stored are heads of 16


@pytest.mark.parametrize("text", [b"\xff\xfe", b"{", b"[]", b'{"a": 1, "a": 2}'])
def test_a_config_that_is_no_json_object_is_refused(text: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


def test_missing_extra_and_misshaped_tensors_are_named(folder: Path) -> None:
    tensors = tensors_of(folder)
    norm = tensors.pop("model.norm.weight")
    save(folder, tensors)
    with pytest.raises(CheckpointError, match=r"lacks tensors: model\.norm\.weight"):
        open_checkpoint(folder)
    save(folder, {**tensors, "model.norm.weight": norm, "extra.bias": norm.clone()})
    with pytest.raises(CheckpointError, match=r"unexpected tensors: extra\.bias"):
        open_checkpoint(folder)
    save(folder, {**tensors, "model.norm.weight": norm[:8].clone()})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight must be \[160\], got \[8\]"):
        open_checkpoint(folder)


def test_buffers_that_everybody_computes_anew_are_ignored(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"].clone()
    save(folder, tensors)
    assert len(open_checkpoint(folder).tensors) == len(tensors) - 1


def test_a_shard_that_the_folder_lacks_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update({"model.norm.weight": "../x.safetensors"}), "own folder"),
        (lambda m: m.pop("model.norm.weight"), r"model\.norm\.weight, which .* does not name"),
        (lambda m: m.update({"ghost": "model-00001-of-00002.safetensors"}), "ghost"),
        (lambda m: m.clear(), "weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(
    change: Callable[[Config], Any], words: str, folder: Path
) -> None:
    edit(shard(folder), lambda index: change(index["weight_map"]))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)


def test_pickled_weights_are_refused_with_a_remedy(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save_pretrained"):
        open_checkpoint(folder)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="spelling"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json.* Got none of these\.$"):
        open_checkpoint(tmp_path)
    for name in ("a.gguf", "b.nemo"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"Name one: .*/a\.gguf or .*/b\.nemo\.$"):
        open_checkpoint(tmp_path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_configs_and_headers_raise_nothing_else(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    whole = (folder / name).read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 3000) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(damaged)
    try:
        open_checkpoint(folder, "hf")
    except CheckpointError:
        pass
    finally:
        (folder / name).write_bytes(whole)
