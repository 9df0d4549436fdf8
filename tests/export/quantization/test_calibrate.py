"""Calibration against transformers: the same inputs, the same divergence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nemo_trt.errors import ExportError, RequestError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.quantization.calibrate import calibrate
from nemo_trt.export.quantization.keep import choose_kept
from nemo_trt.export.quantization.observe import Observer
from nemo_trt.export.quantization.texts import read_calibration_set
from nemo_trt.export.samples import write_seeded
from nemo_trt.progress import Silent
from nemo_trt.quantization import LM_HEAD, Quantization
from nemo_trt.validate.texts import HELD_OUT

pytestmark = pytest.mark.model

SAMPLES = [np.random.default_rng(n).integers(0, 512, 9 + n).tolist() for n in range(10)]


def run(checkpoint: Path, **more: Any) -> Quantization:
    options: dict[str, Any] = {"max_kl": 100.0, "calibration": {}, "progress": Silent(), **more}
    return calibrate(open_checkpoint(checkpoint), more.pop("samples", SAMPLES), **options)


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Path) -> Quantization:
    return run(tiny_checkpoint, fp8_lm_head=True)


@torch.no_grad()
def inputs_in_transformers(checkpoint: Path) -> dict[str, float]:
    """The largest magnitude that each projection of transformers' model reads, as BF16."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    seen: dict[str, float] = {}

    def hook(name: str) -> Any:
        def look(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            largest = float(arguments[0].to(torch.bfloat16).abs().max())
            seen[name] = max(seen.get(name, 0.0), largest)

        return look

    for name, module in model.named_modules():
        if name.endswith("_proj") or name == "lm_head":
            module.register_forward_pre_hook(hook(name))
    for sample in SAMPLES:
        model(torch.tensor([sample]))
    return seen


def test_every_input_is_as_large_as_in_transformers(
    found: Quantization, tiny_checkpoint: Path
) -> None:
    seen = inputs_in_transformers(tiny_checkpoint)
    assert len(found.activations) == 4 * 2 + 1
    for group, one in found.activations.items():
        first = {"qkv": "q_proj", "o": "o_proj", "gate_up": "up_proj", "down": "down_proj"}
        prefix, _, last = group.rpartition(".")
        name = f"{prefix}.{first[last]}" if prefix else LM_HEAD
        assert one.amax == pytest.approx(seen[name], rel=2**-7)  # a rounding to BF16 apart
        assert one.clip == one.amax and one.shift > 0


def test_every_weights_amax_is_recorded(found: Quantization, tiny_checkpoint: Path) -> None:
    tensors = open_checkpoint(tiny_checkpoint).tensors
    for name, amax in found.weight_amax.items():
        bits = np.array(tensors[name].read()).view(np.int16)
        values = torch.from_numpy(bits).view(torch.bfloat16).float()
        assert amax == float(values.abs().max())


def test_shares_add_up_to_the_whole(found: Quantization) -> None:
    assert sum(one.kl for one in found.activations.values()) == pytest.approx(found.kl)
    assert found.kl > 0 and not found.kept


def test_groups_are_kept_until_the_rest_costs_little_enough(tiny_checkpoint: Path) -> None:
    whole = run(tiny_checkpoint)
    limit = whole.kl / 3
    some = run(tiny_checkpoint, max_kl=limit)
    rest = sum(one.kl for group, one in some.activations.items() if some.is_fp8(group))
    assert 0 < len(some.kept) < len(some.activations) and rest <= limit
    assert run(tiny_checkpoint, max_kl=0).kept.keys() == whole.activations.keys()


def test_the_costliest_a_byte_are_kept_first(found: Quantization, tiny_checkpoint: Path) -> None:
    config = open_checkpoint(tiny_checkpoint).config
    measured = {
        group: replace(one, shift=1000.0 if group.endswith("1.mlp.down") else 1.0)
        for group, one in found.activations.items()
    }
    _, kept = choose_kept(config, measured, kl=1.0, max_kl=0.5)
    assert list(kept) == ["model.layers.1.mlp.down"]

    # Gate/up costs a little more than o, but has several times the bytes.
    shifts = {"model.layers.1.self_attn.o": 10.0, "model.layers.1.mlp.gate_up": 11.0}
    equal = {
        group: replace(one, shift=shifts.get(group, 1e-6))
        for group, one in found.activations.items()
    }
    _, kept = choose_kept(config, equal, kl=1.0, max_kl=0.6)
    assert list(kept) == ["model.layers.1.self_attn.o"]


def test_clips() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(400, 1000)).astype(np.float32)).to(torch.bfloat16)
    x[0, 0] = 3000.0
    observer = Observer()
    observer.add(x[:100])
    observer.add(x[100:])
    assert observer.clip("amax") == observer.amax == float(x.float().abs().max())
    percentile = np.percentile(x.float().abs().numpy(), 99.999)
    assert observer.clip("percentile") == pytest.approx(percentile, rel=0.02)
    assert observer.clip("mse") in [observer.amax * 2 ** (-n / 8) for n in range(33)]


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_a_tensor_of_zeros_clips_at_zero(method: Any) -> None:
    observer = Observer()
    observer.add(torch.zeros(3, 3))
    assert observer.clip(method) == 0.0


def test_a_tied_head_cannot_be_fp8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tied = replace(open_checkpoint(tiny_checkpoint).config, tied_head=True)
    write_seeded(tmp_path / "tied", tied)
    with pytest.raises(ExportError, match="untied"):
        run(tmp_path / "tied", fp8_lm_head=True)


@pytest.mark.parametrize("samples", [[], [[1]]])
def test_a_set_without_tokens_is_refused(samples: list[list[int]], tiny_checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="at least two tokens"):
        calibrate(
            open_checkpoint(tiny_checkpoint),
            samples,
            calibration={},
            max_kl=1.0,
            progress=Silent(),
        )


def test_the_built_in_set_is_large_varied_and_disjoint_from_the_validation_texts() -> None:
    chosen = read_calibration_set()
    keys = ("user", "assistant", "text")
    texts = ["\n".join(str(line.get(key, "")) for key in keys) for line in chosen.lines]
    kinds = [line["kind"] for line in chosen.lines]
    assert len(set(texts)) >= 128
    assert {"chat", "code", "mathematics", "data", "language"} <= set(kinds)
    assert {"chat", "code", "mathematics", "data", "language"} <= set(kinds[:16])

    def pieces(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + 6]) for i in range(len(words) - 5)}

    held_out = set().union(*map(pieces, HELD_OUT))
    assert held_out and not held_out & set().union(*map(pieces, texts))


def test_sets_of_ones_own(tmp_path: Path) -> None:
    lines = tmp_path / "set.jsonl"
    lines.write_text('{"tokens": [1, 2, 3]}\n\n{"tokens": [4, 5]}\n')
    chosen = read_calibration_set(lines)
    assert chosen.tokens(None, 10) == [[1, 2, 3], [4, 5]]
    assert read_calibration_set(lines, 1).tokens(None, 10) == [[1, 2, 3]]
    with pytest.raises(RequestError, match="ids from 0 to 4"):
        chosen.tokens(None, 5)
    with pytest.raises(RequestError, match="at least 3 samples, got 2"):
        read_calibration_set(lines, 3)
    text = tmp_path / "set.txt"
    text.write_text("one\ntwo\n")
    assert [line["text"] for line in read_calibration_set(text).lines] == ["one", "two"]
    with pytest.raises(RequestError, match="must be calibrated on token ids"):
        read_calibration_set(text).tokens(None, 10)
    for damaged in ("[1]\n", "{\n", '{"words": 1}\n'):
        lines.write_text(damaged)
        with pytest.raises(RequestError, match="line 1"):
            read_calibration_set(lines)
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="UTF-8"):
        read_calibration_set(lines)
