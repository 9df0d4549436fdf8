"""Engines with paged attention, really compiled: what the log shows, what lies beside a plan."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.cache_scales import CacheLayer, CacheScales
from nemo_trt.engines.targets import target_named
from nemo_trt.engines.trt import builder
from nemo_trt.engines.trt.attention.ahead import compile_attention
from nemo_trt.engines.trt.attention.step import Heads
from nemo_trt.engines.trt.engine_record import BuildOptions, EngineRecord, read_record
from nemo_trt.engines.trt.kernels import Kernel, Operand, require_paged_decode
from nemo_trt.engines.trt.toolkit import load_toolkit
from nemo_trt.errors import BuildError
from nemo_trt.manifest import MANIFEST_FILE, read_manifest
from nemo_trt.precision import DType

pytestmark = pytest.mark.e2e

pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
pytest.importorskip("triton", reason="the kernels are compiled by Triton")
T = 65_536  # more than TensorRT's own attention takes
GPUS = {"bf16": "l4", "fp8": "rtx5090"}


def options_for(gpu: str) -> BuildOptions:
    return BuildOptions(
        target=gpu, sm=target_named(gpu).sm, max_seq_len=T, max_batch=4, prefill_chunk=256,
        max_logits=8, attention="paged",
    )  # fmt: skip


def build(bundle: Path, gpu: str, **more: Any) -> tuple[EngineRecord, bool]:
    toolkit = load_toolkit("tensorrt-rtx")
    return builder.build_plans(bundle, options_for(gpu), toolkit, target=target_named(gpu), **more)


@pytest.fixture(scope="module")
def built(small: dict[str, Path]) -> dict[str, EngineRecord]:
    """An engine of each precision; the bundles' folder is this module's own."""
    return {precision: build(small[precision], gpu)[0] for precision, gpu in GPUS.items()}


@pytest.mark.parametrize("precision", GPUS)
def test_an_engine_with_pages(
    precision: str, built: dict[str, EngineRecord], small: dict[str, Path]
) -> None:
    record, gpu = built[precision], GPUS[precision]
    assert record.name == f"{gpu}-{precision}-paged"
    (plan,) = record.plans
    # One attention of ours a layer in both profiles; its own kernels count as launches.
    assert all(kernels["self_attn.Attention"] == 1 for kernels in plan.kernels.values())
    for rows in (1, 2, 4):
        assert plan.launches_per_layer[f"decode-{rows}"] <= 14
    # No scratch grows with the context: at this one TensorRT's own expands 2 x 128 MiB a row.
    assert max(plan.scratch_bytes.values()) < 16 * 2**20
    # All of it stays when read again, and a second build has nothing to do.
    folder = small[precision] / "engines" / record.name
    assert read_record(Bundle.open(small[precision]), record.name) == record
    assert build(small[precision], gpu) == (record, False)
    assert {path.name for path in (folder / "attention").iterdir()} == {
        f"{kernel.name}-bf16.cubin" for kernel in record.paged.kernels
    }
    assert "--attention paged --page 64" in record.rebuild_command(Bundle.open(small[precision]))


def test_an_fp8_cache_in_the_layers_that_take_it(small: dict[str, Path], tmp_path: Path) -> None:
    """One layer of two: both kinds of pages in one plan, and kernels for both."""
    bundle = shutil.copytree(small["fp8"], tmp_path / "bundle")
    target, toolkit = target_named("l4"), load_toolkit("tensorrt-rtx")
    options = replace(options_for("l4"), kv_cache="fp8")
    with pytest.raises(BuildError, match="needs the scales of a calibration"):
        builder.build_plans(bundle, options, toolkit, target=target)
    native = replace(options, attention="native", max_seq_len=256)
    with pytest.raises(BuildError, match="needs --attention paged"):
        builder.build_plans(bundle, native, toolkit, target=target)
    layers = tuple(CacheLayer(key_amax=n, value_amax=n, shift=1.0, kl=0.0) for n in (28.0, 56.0))
    cache = CacheScales(layers=layers, kl=1.0, max_kl=0.5, kept={"1": "it costs most"})
    manifest = read_manifest(bundle)
    calibrated = replace(manifest, quantization=replace(manifest.quantization, cache=cache))
    (bundle / MANIFEST_FILE).write_text(calibrated.to_json())
    record, _ = builder.build_plans(bundle, options, toolkit, target=target)
    assert record.name == "l4-fp8-paged-kv8"
    assert record.paged.scales == ((0.0625, 0.0625), None)
    kernels = [(kernel.cache, kernel.name) for kernel in record.paged.kernels]
    names = ("write", "decode", "merge", "prefill")
    assert kernels == [(cache, name) for cache in ("bf16", "fp8") for name in names]
    assert read_record(Bundle.open(bundle), record.name) == record
    assert record.rebuild_command(Bundle.open(bundle)).endswith("--kv-cache fp8")
    assert builder.build_plans(bundle, options, toolkit, target=target) == (record, False)
    # Other scales are another engine, though the bundle is the same.
    other = replace(cache, kept={})
    again = replace(manifest, quantization=replace(manifest.quantization, cache=other))
    (bundle / MANIFEST_FILE).write_text(again.to_json())
    found, built = builder.build_plans(bundle, options, toolkit, target=target)
    assert built and found.paged.scales == ((0.0625, 0.0625), (0.125, 0.125))


def test_an_altered_kernel_is_refused_and_built_again(
    built: dict[str, EngineRecord], small: dict[str, Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(small["bf16"], tmp_path / "bundle")
    name = built["bf16"].name
    cubin = bundle / "engines" / name / "attention" / "decode-bf16.cubin"
    code = bytearray(cubin.read_bytes())
    code[len(code) // 2] ^= 1
    cubin.write_bytes(code)
    with pytest.raises(BuildError, match=r"decode-bf16\.cubin is missing or was altered"):
        read_record(Bundle.open(bundle), name)
    record = bundle / "engines" / name / "engine.json"
    record.write_text(record.read_text().replace('"name": "merge"', '"name": "../merge"'))
    with pytest.raises(BuildError, match=r"damaged: kernels must be "):
        read_record(Bundle.open(bundle), name)


def test_a_pool_need_not_hold_every_row_whole(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 rows of 65,536 tokens take 34 GB of an L4's 24: one row must fit, and many may share."""

    def reached(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(builder, "lower", reached)
    target, toolkit = target_named("l4"), load_toolkit("tensorrt-rtx")
    many = replace(options_for("l4"), max_batch=256)
    with pytest.raises(InterruptedError):
        builder.build_plans(small["bf16"], many, toolkit, target=target)
    native = replace(many, attention="native", max_seq_len=20_000, max_batch=1024)
    with pytest.raises(BuildError, match="l4 must hold"):
        builder.build_plans(small["bf16"], native, toolkit, target=target)


def decode(damage: Any = None) -> tuple[list[Kernel], Any]:
    """Kernels of a sound decode profile of one layer, and its config."""
    from nemo_trt.export.samples import SHAPES

    config = replace(SHAPES["nemo-12b"], num_layers=1)
    pool = Operand(name="past_key_values.0.key", shape=(-1, 8, 64, 128), dtype="BFloat16")
    plugin = Kernel(name="attention", kind="PluginV3", inputs=(pool,), outputs=(pool,))
    small = Operand(name="x", shape=(-1, 5120), dtype="FP8")
    product = Kernel(name="product", kind="gemm", inputs=(small,), outputs=(small,))
    return [plugin, product], config


def test_a_cache_that_a_kernel_of_tensorrts_touches_is_refused() -> None:
    kernels, config = decode()
    require_paged_decode(kernels, config, 64, fp8_products=1)
    with pytest.raises(BuildError, match="got 0"):
        require_paged_decode(kernels[1:], config, 64, fp8_products=1)
    with pytest.raises(BuildError, match="2 products must take FP8"):
        require_paged_decode(kernels, config, 64, fp8_products=2)
    named = kernels[0].inputs[0]
    for touched in (named, replace(named, name="copy"), replace(named, shape=(4,))):
        copy = Kernel(name="copy", kind="Reformat", inputs=(touched,), outputs=())
        with pytest.raises(BuildError, match="Only the plugin may touch the cache"):
            require_paged_decode([*kernels, copy], config, 64, fp8_products=1)


@pytest.mark.parametrize(
    ("changed", "sm", "cache", "said"),
    [
        ({"head_dim": 72}, 90, DType.BF16, "multiple of 16, at most 256, got 72"),
        ({"page": 48}, 90, DType.BF16, "16, 32, 64 or 128 tokens, got 48"),
        ({}, 75, DType.BF16, "sm_80 or later, got sm_75"),
        ({}, 86, DType.FP8, "sm_89 or later, got sm_86"),
    ],
)
def test_what_the_kernels_cannot_serve_is_refused_before_a_build(
    changed: dict[str, int], sm: int, cache: DType, said: str, tmp_path: Path
) -> None:
    heads = replace(Heads(kv_heads=8, group=4, head_dim=128, page=64), **changed)
    scales = ((1.0, 1.0) if cache is DType.FP8 else None,)
    with pytest.raises(BuildError, match=said):
        compile_attention(tmp_path, heads, sm=sm, rows=1, compute=DType.BF16, scales=scales)
    assert not list(tmp_path.iterdir())


def test_weights_lie_in_the_plan_once(
    built: dict[str, EngineRecord], small: dict[str, Path]
) -> None:
    """TensorRT splits the graph at every attention: the parts of all profiles share weights."""
    for precision, record in built.items():
        weights = read_manifest(small[precision]).weight_bytes
        (plan,) = record.plans
        code = 3 * 2**20 * len(plan.profiles)
        assert plan.num_bytes - weights < code  # weights that lie there twice are more
