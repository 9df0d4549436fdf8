"""LoRA adapters merged at export, against PEFT's own merge in fp32."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nemo_trt import bfloat16
from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
PROJECTIONS = ["q_proj", "v_proj", "gate_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": PROJECTIONS},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": PROJECTIONS,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"gate_proj": 3, "layers.0.*v_proj": 32},
    },
    "one layer": {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": "all-linear",
        "layers_to_transform": 1,
    },
    "head": {"r": 3, "lora_alpha": 5, "target_modules": ["lm_head"]},
    "embedding": {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "q_proj"]},
    "whole head": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
    },
    "gaussian": {"r": 4, "target_modules": ["o_proj"], "init_lora_weights": "gaussian"},
    "eva": {"r": 4, "target_modules": ["o_proj"], "init_lora_weights": "eva"},
    "random start": {"r": 4, "target_modules": ["o_proj"], "init_lora_weights": False},
    "orthogonal": {"r": 4, "target_modules": ["o_proj"], "init_lora_weights": "orthogonal"},
    "mica": {"r": 4, "target_modules": ["o_proj"], "init_lora_weights": "mica"},
}


def peft_model(checkpoint: Path, seed: int | None, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if "layers_to_transform" in options:
        options = {**options, "target_modules": PROJECTIONS}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**options))
    if seed is None:
        return adapted
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return adapted


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for number, (kind, options) in enumerate(KINDS.items()):
        model = peft_model(tiny_checkpoint, number, **options)
        if kind in ("head", "embedding"):  # PEFT stores the layer itself beside its adapter
            layer = (
                model.get_output_embeddings() if kind == "head" else model.get_input_embeddings()
            )
            layer.base_layer.weight.data += 0.5
        model.save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_merge_is_pefts(kind: str, adapters: dict[str, Path], tiny_checkpoint: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, adapters[kind]).merge_and_unload().state_dict()
    before = open_checkpoint(tiny_checkpoint)
    merged = merge_adapters(before, [Adapter(adapters[kind])])
    changed = 0
    for name, tensor in merged.tensors.items():
        wanted = expected[name].to(torch.bfloat16).view(torch.int16).numpy()
        found = tensor.read().view(np.int16)
        # Sums of another order may fall to the other side of a rounding.
        assert (found != wanted).mean() < 1e-3, name
        close = bfloat16.to_float32(tensor.read())
        np.testing.assert_allclose(close, expected[name].numpy(), rtol=2**-7, atol=1e-6)
        changed += not np.array_equal(tensor.read(), before.tensors[name].read())
        middle = tensor.shape[0] // 2
        np.testing.assert_array_equal(
            tensor.rows(middle, middle + 2), found.view(np.uint16)[middle : middle + 2]
        )
    modules = {re.sub(r"\.(lora_|base_layer|weight).*", "", name) for name in load(adapters[kind])}
    assert changed == len(modules)


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialisation_that_moves_the_base_is_refused_and_its_conversion_is_merged(
    kind: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": kind}
    model = peft_model(tiny_checkpoint, None, **options)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = kind
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn(parameter.shape) * 0.01
    model.save_pretrained(tmp_path / "moved")
    before = open_checkpoint(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=f"init_lora_weights in .* got '{kind}'"):
        merge_adapters(before, [Adapter(tmp_path / "moved")])
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    expected = PeftModel.from_pretrained(base, tmp_path / "plain").merge_and_unload().state_dict()
    merged = merge_adapters(before, [Adapter(tmp_path / "plain")])
    name = "model.layers.0.self_attn.q_proj.weight"
    found = bfloat16.to_float32(merged.tensors[name].read())
    np.testing.assert_allclose(found, expected[name].numpy(), rtol=2**-7, atol=1e-6)


def test_every_field_of_pefts_config_is_known() -> None:
    from dataclasses import fields

    from peft import LoraConfig

    from nemo_trt.export.checkpoints import lora_config

    known = lora_config._KNOWN | set(lora_config._ONLY)
    assert {field.name for field in fields(LoraConfig)} <= known


def load(adapter: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(adapter / "adapter_model.safetensors"))


def test_several_adapters_with_weights_add_up(
    adapters: dict[str, Path], tiny_checkpoint: Path
) -> None:
    from transformers import AutoModelForCausalLM

    name = "model.layers.0.self_attn.v_proj.weight"
    total = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).state_dict()[name].float()
    for kind, weight, scaling in (("plain", 0.5, 2.0), ("patterns", -1.5, 8.0)):
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        a, b = (load(adapters[kind])[f"{stem}{which}.weight"] for which in "AB")
        total = total + weight * scaling * (b @ a)
    merged = merge_adapters(
        open_checkpoint(tiny_checkpoint),
        [Adapter.parse(f"{adapters['plain']}:0.5"), Adapter.parse(f"{adapters['patterns']}:-1.5")],
    )
    found = bfloat16.to_float32(merged.tensors[name].read())
    np.testing.assert_allclose(found, total.numpy(), rtol=2**-8, atol=1e-6)


HEAD = "base_model.model.lm_head"


def copied(adapter: Path, target: Path, **replaced: torch.Tensor | None) -> Adapter:
    """An adapter with other tensors of its head; None leaves one out."""
    target.mkdir()
    (target / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    parts = {**load(adapter), **{f"{HEAD}.{n.replace('__', '.')}": t for n, t in replaced.items()}}
    whole = {name: tensor for name, tensor in parts.items() if tensor is not None}
    save_file(whole, target / "adapter_model.safetensors")
    return Adapter(target)


def test_two_adapters_of_a_weight_that_one_replaces_are_refused_in_either_order(
    adapters: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    delta = copied(adapters["head"], tmp_path / "delta", base_layer__weight=None)
    for first, second in (
        (Adapter(adapters["whole head"]), delta),
        (Adapter(adapters["whole head"]), Adapter(adapters["head"])),
        (delta, Adapter(adapters["head"])),
    ):
        for pair in ([first, second], [second, first]):
            with pytest.raises(CheckpointError, match=r"lm_head.weight must be adapted by one"):
                merge_adapters(checkpoint, pair)


def test_a_stored_weight_that_is_the_checkpoints_own_changes_nothing(
    adapters: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    own = load_file(tiny_checkpoint / "model.safetensors")["lm_head.weight"]
    same = copied(adapters["head"], tmp_path / "same", base_layer__weight=own.float())
    delta = copied(adapters["head"], tmp_path / "delta", base_layer__weight=None)
    wanted = merge_adapters(checkpoint, [delta, delta]).tensors["lm_head.weight"].read()
    for pair in ([same, delta], [delta, same], [same, same]):
        found = merge_adapters(checkpoint, pair).tensors["lm_head.weight"].read()
        np.testing.assert_array_equal(found, wanted)


def test_a_module_has_one_weight(
    adapters: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    twice = copied(adapters["head"], tmp_path / "twice", weight=torch.zeros(512, 64))
    with pytest.raises(CheckpointError, match="holds two weights for lm_head"):
        merge_adapters(open_checkpoint(tiny_checkpoint), [twice])


def test_export_merges_and_says_so(
    adapters: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from nemo_trt.cli.main import run
    from nemo_trt.manifest import read_manifest

    lora = f"{adapters['plain']}:0.75"
    assert run(["export", str(tiny_checkpoint), str(tmp_path / "b"), "--lora", lora]) == 0
    (said,) = read_manifest(tmp_path / "b").adapters
    assert said["path"].endswith("plain") and said["weight"] == 0.75
    assert re.fullmatch("[0-9a-f]{64}", str(said["sha256"]))
    assert run(["validate", str(tmp_path / "b")]) == 0  # against the merged model


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(adapter: Path) -> None:
        data = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**data, **changes}))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(adapter: Path) -> None:
        found = load(adapter)
        change(found)
        save_file(found, adapter / "adapter_model.safetensors")

    return apply


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "DoRA": (edit(use_dora=True), "use_dora in .* must be None or False"),
    "another method": (edit(peft_type="IA3"), "peft_type in .* must be 'LORA'"),
    "biases": (edit(bias="all"), "bias in .* must be"),
    "saved modules": (
        edit(modules_to_save=["lm_head"]),
        "modules_to_save in .* it lacks 'lm_head'",
    ),
    "not targeted": (edit(target_modules=["v_proj"]), "must target model.layers.0.*_proj, which"),
    "excluded": (edit(exclude_modules=["q_proj"]), "must target model.layers.0.*q_proj"),
    "excluded by a pattern": (
        edit(exclude_modules=".*q_proj"),
        "must target model.layers.0.*q_proj",
    ),
    "another list of layers": (
        edit(layers_to_transform=[0, 1], layers_pattern="h"),
        "must target model.layers.0",
    ),
    "layers": (edit(layers_to_transform=[1]), "must target model.layers.0"),
    **{
        field: (edit(**{field: value}), f"{field} in .* must be ")
        for field, value in {
            "lora_bias": True,
            "fan_in_fan_out": True,
            "layer_replication": [[0, 1], [0, 2]],
            "trainable_token_indices": [1],
            "target_parameters": ["mlp.experts"],
            "alora_invocation_tokens": [1],
            "use_qalora": True,
            "use_bdlora": True,
            "arrow_config": {"top_k": 1},
            "kasa_config": {"a": 1},
            "monteclora_config": {"a": 1},
            "velora_config": {"a": 1},
            "megatron_config": {"a": 1},
        }.items()
    },
    "unknown": (edit(use_new=True), "use_new in .* is not known"),
    "tied weights": (edit(ensure_weight_tying=True), "ensure_weight_tying in"),
    "infinite alpha": (edit(lora_alpha=float("inf")), "lora_alpha in .* positive number"),
    "slow pattern": (edit(target_modules="(.*)*" * 9 + "x"), "target_modules in .* repeats"),
    **{
        kind: (edit(init_lora_weights=kind), f"init_lora_weights in .* got '{kind}'")
        for kind in ("PiSSA", "corda", "loftq", "lora_ga", "milora", "eva2")
    },
    "no number": (tensors(lambda t: t[A].fill_(float("nan"))), "q_proj in .* finite numbers"),
    "resized": (
        tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(3, 40)})),
        "lm_head in .* must be .* as in the checkpoint, got \\[3, 40\\]",
    ),
    "rank": (edit(r=5), "must have rank 5 by adapter_config.json, got 4"),
    "alpha": (edit(lora_alpha="x"), "lora_alpha in .* must be a positive number"),
    "pattern": (edit(alpha_pattern={"(": 1}), "alpha_pattern in .* regular expressions"),
    "one half": (tensors(lambda t: t.pop(A)), "must hold lora_A and lora_B of"),
    "shape": (
        tensors(lambda t: t.update({A: t[A][:, :-1].contiguous()})),
        "q_proj in .* must have A",
    ),
    "module": (
        tensors(lambda t: t.update({A.replace("q_proj", "qq_proj"): t[A].clone()})),
        "adapts model.layers.0.self_attn.qq_proj, a module that the model does not have",
    ),
    "layer": (
        tensors(lambda t: t.update({A.replace("layers.0", "layers.9"): t[A].clone()})),
        "adapts model.layers.9",
    ),
    "magnitude": (
        tensors(lambda t: t.update({A.replace("_A.weight", "_magnitude_vector"): t[A].clone()})),
        "is no weight of plain LoRA",
    ),
    "nothing": (tensors(lambda t: t.clear()), "at least one adapted module"),
    "empty": (lambda p: (p / "adapter_model.safetensors").write_bytes(b""), "truncated"),
    "no UTF-8": (lambda p: (p / "adapter_config.json").write_bytes(b"\xff"), "JSON in UTF-8"),
    "missing": (lambda p: (p / "adapter_model.safetensors").unlink(), "must be a PEFT adapter"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_a_sentence(
    damage: str, adapters: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((adapters["plain"] / name).read_bytes())
    change, message = DAMAGES[damage]
    change(adapter)
    with pytest.raises(CheckpointError, match=message) as caught:
        merge_adapters(open_checkpoint(tiny_checkpoint), [Adapter(adapter)])
    assert "\n" not in str(caught.value)


def test_a_weight_must_be_a_number() -> None:
    assert Adapter.parse("a/b") == Adapter(Path("a/b"), 1.0)
    assert Adapter.parse("a:2") == Adapter(Path("a"), 2.0)
    for text in ("a:b", "a:nan", "a:inf"):
        with pytest.raises(CheckpointError, match="--lora must be PATH or PATH:weight"):
            Adapter.parse(text)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_fuzzed_adapters_raise_nothing_else(
    data: st.DataObject, adapters: dict[str, Path], tiny_checkpoint: Path
) -> None:
    name = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    path = adapters["plain"] / name
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 3000) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        merge_adapters(open_checkpoint(tiny_checkpoint), [Adapter(adapters["plain"])])
    except CheckpointError:
        pass
    finally:
        path.write_bytes(whole)


def test_a_base_that_cannot_take_the_adapter_is_refused(
    adapters: dict[str, Path], tiny_checkpoint: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    others = {n: t for n, t in checkpoint.tensors.items() if n != "lm_head.weight"}
    config = replace(checkpoint.config, tied_head=True)
    tied = replace(checkpoint, config=config, tensors=others)
    fp8: Any = replace(checkpoint, fp8={"model.layers.0.self_attn.q_proj.weight": None})
    for base, adapter, message in (
        (tied, Adapter(adapters["embedding"]), "which is also the head"),
        (checkpoint, Adapter(adapters["whole head"], weight=0.5), r"must have weight 1, got 0\.5"),
        (fp8, Adapter(adapters["plain"]), "must be merged into BF16 weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            merge_adapters(base, [adapter])
