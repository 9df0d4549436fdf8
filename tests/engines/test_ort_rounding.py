"""The rehearsal of BF16's rounding, against the graph without it and transformers' BF16 model."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from nemo_trt import bfloat16
from nemo_trt.cli.main import run
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.errors import RequestError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.passes import round_values
from nemo_trt.passes.graph_pass import make
from nemo_trt.precision import DType
from nemo_trt.validate.bundle_validation import validate_bundle
from tests.validate import faults

pytestmark = pytest.mark.model

TOKENS = np.arange(7, 47)


@pytest.fixture(scope="module")
def bf16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounding") / "bundle"
    export_bundle(tiny_checkpoint, folder, precision=DType.BF16)
    return folder


def logits(bundle: Path, *, rounding: DType | None) -> tuple[np.ndarray, np.ndarray]:
    """Of a prefill of two rows and of decoding behind the second; and a block of its cache."""
    with OrtSession.open(bundle, max_batch=2, max_seq_len=64, rounding=rounding) as session:
        session.bind(64)
        both = np.stack([TOKENS[::-1][:20], TOKENS[:20]])
        every = np.tile(np.arange(20), (2, 1))
        parts = [session.step(both, np.array([0, 0]), every)[1].copy()]
        one = np.zeros((2, 1), np.int64)
        for at in range(20, len(TOKENS)):
            step = session.step(TOKENS[[3, at]][:, None], np.array([5, at]), one)
            parts.append(step[1].copy())
        cache = session.read_cache(1, "key", 1, 0, len(TOKENS))
        return np.concatenate(parts), cache


def relative(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one - other, axis=-1) / np.linalg.norm(other, axis=-1)


def test_what_is_rounded_is_representable_and_errors_are_those_of_transformers_bf16(
    tiny_checkpoint: Path, bf16: Path
) -> None:
    exact, _ = logits(bf16, rounding=None)
    rounded, cache = logits(bf16, rounding=DType.BF16)
    assert (cache == cache.astype(ml_dtypes.bfloat16).astype(np.float32)).all()
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tiny_checkpoint, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS[None])).logits[0].float().numpy()
    ours, reference = relative(rounded, exact).mean(), relative(theirs, exact).mean()
    assert reference / 2 < ours < reference * 2


def test_attention_in_fp16_is_rehearsed_as_such(bf16: Path) -> None:
    """Other logits, but no larger error: that of the other products is most of it here."""
    exact, _ = logits(bf16, rounding=None)
    (wide, _), (half, cache) = (logits(bf16, rounding=one) for one in (DType.BF16, DType.FP16))
    assert (cache == cache.astype(np.float16).astype(np.float32)).all()
    assert (half != wide).any()
    assert 0 < relative(half, exact).mean() < 1.1 * relative(wide, exact).mean()


def test_values_beyond_fp16_leave_no_logits(bf16: Path, tmp_path: Path) -> None:
    """FP16 ends at 65,504, which BF16 does not: a validator and a server refuse such logits."""

    def enlarge(weights: dict[str, np.ndarray]) -> None:
        values = weights["model.layers.0.self_attn.v_proj.weight"]
        values[...] = bfloat16.from_float32(bfloat16.to_float32(values) * np.float32(2**22))

    large = faults.copy_with(bf16, tmp_path / "large", weights=enlarge)
    assert np.isfinite(logits(large, rounding=DType.BF16)[0]).all()
    assert not np.isfinite(logits(large, rounding=DType.FP16)[0]).any()


def test_without_its_casts_the_rehearsal_computes_what_the_graph_does(
    bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So attention and norms, which are spelled out, are right: masks, heads, ragged rows."""
    exact, _ = logits(bf16, rounding=None)
    monkeypatch.setattr(
        round_values,
        "rounding",
        lambda value, name, _: [make("Identity", [value], f"{name}/as is")],
    )
    for one in (DType.BF16, DType.FP16):
        spelled_out, _ = logits(bf16, rounding=one)
        assert relative(spelled_out, exact).max() < 5e-6


def test_a_rehearsal_is_judged_by_the_engines_limits_and_leaves_no_verdict(
    bf16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--max-seq-len", "128", "--max-batch", "3"]
    for cache in ("base", "fp16"):
        assert run(["validate", str(bf16), *short, "--rounding", "bf16", "--kv-cache", cache]) == 0
        said = capsys.readouterr().out
        assert "limits of bf16" in said and "no verdict is written" in said
    assert not (bf16 / "validation.json").exists()


def test_only_what_an_engine_rounds_is_rehearsed(
    tiny: Any, bf16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(bf16), "--rounding", "fp8"]) == 2
    assert run(["validate", str(bf16), "--kv-cache", "fp16"]) == 2
    assert "give --rounding, too" in capsys.readouterr().err
    with pytest.raises(RequestError, match="must be bf16 or fp8, got fp32"):
        OrtSession.open(tiny.bundle, rounding=DType.BF16)
    for other in (DType.FP32, DType.FP8):
        with pytest.raises(RequestError, match=f"must be one of bf16, fp16, got .*{other}"):
            OrtSession.open(bf16, rounding=other)
    with pytest.raises(RequestError, match="on the CPU alone"):
        validate_bundle(bf16, where="cuda", rounding=DType.FP16)
