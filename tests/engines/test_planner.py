"""The planner on Nemo-12B's real shape: sums done here by hand, refusals, and what they name."""

import re
from dataclasses import replace
from typing import Any

import pytest

from nemo_trt.cache_scales import CacheScales
from nemo_trt.engines.planner import Budget, engine_budget, require_fit
from nemo_trt.engines.targets import TARGETS, target_named
from nemo_trt.errors import BuildError, RequestError
from nemo_trt.export.samples import SHAPES
from nemo_trt.manifest import Manifest, WeightFile, read_manifest
from nemo_trt.precision import DType
from nemo_trt.quantization import Quantization
from nemo_trt.stages.plan import FutureBundle

pytestmark = pytest.mark.unit

NEMO_BYTES = {DType.BF16: 24_495_564_800, DType.FP8: 13_590_374_400}
"""12,247,782,400 parameters at two bytes; all products but the head at one byte."""
KV_BYTES_PER_TOKEN = 40 * 2 * 8 * 128 * 2


@pytest.fixture
def nemo(tiny: Any) -> dict[DType, Manifest]:
    manifest = read_manifest(tiny.bundle)
    return {
        precision: replace(
            manifest,
            config=SHAPES["nemo-12b"],
            precision=precision,
            weights=(WeightFile(file="x", num_bytes=num_bytes, quick_digest=""),),
        )
        for precision, num_bytes in NEMO_BYTES.items()
    }


def test_the_bytes_of_the_fixture_are_nemos() -> None:
    embedding = 131072 * 5120
    layer = 5120 * 4096 * 2 + 5120 * 1024 * 2 + 3 * 5120 * 14336 + 2 * 5120
    assert NEMO_BYTES[DType.BF16] == 2 * (2 * embedding + 40 * layer + 5120)
    products = layer - 2 * 5120
    assert NEMO_BYTES[DType.BF16] - NEMO_BYTES[DType.FP8] == 40 * products


def test_memory_and_lower_bound_are_sums_that_anyone_can_do(nemo: dict[DType, Manifest]) -> None:
    budget = engine_budget(nemo[DType.BF16], target_named("h100"), max_seq_len=8192, max_batch=4)
    assert budget.weight_bytes == NEMO_BYTES[DType.BF16]
    assert budget.kv_bytes == 4 * 8192 * KV_BYTES_PER_TOKEN
    # A step reads everything but the embedding, of which it takes a row.
    read = NEMO_BYTES[DType.BF16] - 2 * 131072 * 5120
    bandwidth = TARGETS["h100"].bandwidth_gb_s * 1e6
    assert budget.weights_ms == pytest.approx(read / bandwidth)
    assert budget.floor_ms == pytest.approx((read + budget.kv_bytes) / bandwidth)
    require_fit(budget, nemo[DType.BF16])


@pytest.mark.parametrize(
    ("gpu", "longest"), [("rtx5090", 24_448), ("a100", 24_448), ("h100", None), ("b200", None)]
)
def test_fused_attention_ends_where_builds_found_it(
    gpu: str, longest: int | None, nemo: dict[DType, Manifest]
) -> None:
    manifest = nemo[DType.BF16]
    budget = engine_budget(manifest, target_named(gpu))
    assert budget.fused_tokens == longest
    assert budget.max_seq_len == (min(budget.fits[1], longest or budget.fits[1]) or 256)
    assert engine_budget(manifest, target_named(gpu), paged=True).fused_tokens is None
    narrow = replace(manifest, config=replace(manifest.config, head_dim=64))
    if longest:
        assert engine_budget(narrow, target_named(gpu)).fused_tokens == longest + 64


def test_proposed_capacities_fit_and_have_their_lower_bound(nemo: dict[DType, Manifest]) -> None:
    manifest, l40s = nemo[DType.FP8], target_named("l40s")
    budget = engine_budget(manifest, l40s, max_seq_len=3000, max_batch=2)
    assert list(budget.choices) == [1024, 2048, 4096, 8192, 16384]  # 32,768 is not fused
    for tokens, floor in budget.choices.items():
        one = engine_budget(manifest, l40s, max_seq_len=tokens, max_batch=2)
        assert one.free_bytes >= 0 and one.floor_ms == pytest.approx(floor)
    paged = engine_budget(manifest, l40s, max_batch=2, paged=True)
    assert max(paged.choices) == 65536


def test_tokens_of_all_rows_together_fill_the_memory(nemo: dict[DType, Manifest]) -> None:
    manifest, target = nemo[DType.FP8], target_named("h100")
    few, many = (
        engine_budget(manifest, target, max_seq_len=8192, max_batch=rows, paged=True)
        for rows in (1, 64)
    )
    assert few.cache_tokens == many.cache_tokens  # rows reserve nothing
    used = few.used_bytes - few.kv_bytes
    assert 0 <= target.memory_bytes - used - few.cache_tokens * KV_BYTES_PER_TOKEN < 2**18
    native = engine_budget(manifest, target, max_seq_len=8192, max_batch=1)
    copied = 8192 * 2 * 8 * 128 * 2  # a layer's keys and values, in scratch
    assert abs(few.cache_tokens - native.cache_tokens - copied / KV_BYTES_PER_TOKEN) < 1
    too_small = engine_budget(nemo[DType.BF16], target_named("l4"), max_seq_len=256)
    assert too_small.cache_tokens == 0


def test_a_pool_need_not_hold_every_row_in_full(nemo: dict[DType, Manifest]) -> None:
    """16 rows of 131,072 tokens would take 344 GB of an H100: one must fit, and many may share."""
    manifest, h100 = nemo[DType.FP8], target_named("h100")
    many = engine_budget(manifest, h100, max_seq_len=131_072, max_batch=16, paged=True)
    require_fit(many, manifest)
    assert many.free_bytes == 0 and many.fits[16] == 131_072
    assert 131_072 * KV_BYTES_PER_TOKEN < many.kv_bytes < 16 * 131_072 * KV_BYTES_PER_TOKEN
    few = engine_budget(manifest, h100, max_seq_len=4096, max_batch=2, paged=True)
    assert few.kv_bytes == 2 * 4096 * KV_BYTES_PER_TOKEN
    small = engine_budget(manifest, target_named("l4"), max_seq_len=131_072, paged=True)
    with pytest.raises(BuildError, match=r"l4 must hold .* Use --max-seq-len \d+ "):
        require_fit(small, manifest)
    native = engine_budget(manifest, h100, max_seq_len=24_000, max_batch=64)
    with pytest.raises(BuildError, match="h100 must hold"):
        require_fit(native, manifest)


def test_an_fp16_cache_is_as_large_and_belongs_to_bf16_and_native_attention(
    nemo: dict[DType, Manifest],
) -> None:
    l40s = target_named("l40s")
    base, half = (
        engine_budget(nemo[DType.FP8], l40s, max_seq_len=8192, kv_cache=kind)
        for kind in ("base", "fp16")
    )
    assert half == base
    with pytest.raises(BuildError, match="must have --attention native, got paged"):
        engine_budget(nemo[DType.BF16], l40s, paged=True, kv_cache="fp16")
    for other in (DType.FP16, DType.FP32):
        with pytest.raises(BuildError, match=f"must have a BF16 or FP8 bundle, got {other}"):
            engine_budget(replace(nemo[DType.BF16], precision=other), l40s, kv_cache="fp16")


def test_an_fp8_cache_takes_half_in_the_layers_that_take_it(nemo: dict[DType, Manifest]) -> None:
    plain, l40s = nemo[DType.FP8], target_named("l40s")
    assert plain.quantization is None
    with pytest.raises(BuildError, match="needs the scales of a calibration"):
        engine_budget(plain, l40s, paged=True, kv_cache="fp8")
    scales = CacheScales(layers=(), kl=1.0, max_kl=0.5, kept={"0": "costly", "39": "costly"})
    found = Quantization(
        weight_scales="per-tensor", method="amax", calibration={}, activations={}, weight_amax={},
        kl=0.0, max_kl=1.0, kept={}, cache=scales,
    )  # fmt: skip
    manifest = replace(plain, quantization=found)
    with pytest.raises(BuildError, match="needs --attention paged"):
        engine_budget(manifest, l40s, kv_cache="fp8")
    base, half = (
        engine_budget(manifest, l40s, max_seq_len=8192, paged=True, kv_cache=kind)
        for kind in ("base", "fp8")
    )
    layer = 2 * 8 * 128  # keys and values of a token
    assert base.kv_token_bytes == 40 * 2 * layer and half.kv_token_bytes == (2 * 2 + 38) * layer
    assert half.kv_bytes == 8192 * half.kv_token_bytes and half.floor_ms < base.floor_ms
    assert base.free_bytes + base.kv_bytes == half.free_bytes + half.kv_bytes
    # What a checkpoint becomes is not known yet: every layer may take it, or none is calibrated.
    future = FutureBundle(config=manifest.config, precision=DType.FP8)
    every = engine_budget(future, l40s, paged=True, kv_cache="fp8")
    assert every.kv_token_bytes == 40 * layer
    for other in (replace(future, calibrated=False), replace(future, precision=DType.BF16)):
        with pytest.raises(BuildError, match="needs the scales of a calibration"):
            engine_budget(other, l40s, paged=True, kv_cache="fp8")


def test_a_gpu_that_is_proposed_computes_the_bundles_precision(nemo: dict[DType, Manifest]) -> None:
    """The smallest that would hold it is an A100, which has no FP8."""
    budget = engine_budget(nemo[DType.FP8], target_named("l40s"), max_seq_len=32768, max_batch=8)
    assert TARGETS["l40s"].memory_bytes < budget.used_bytes < TARGETS["a100"].memory_bytes
    with pytest.raises(BuildError, match="a GPU like h100") as refused:
        require_fit(budget, nemo[DType.FP8])
    assert "a100" not in str(refused.value)


def test_two_plans_hold_the_weights_twice(nemo: dict[DType, Manifest]) -> None:
    one, two = (
        engine_budget(nemo[DType.BF16], target_named("h100"), max_seq_len=8192, num_plans=number)
        for number in (1, 2)
    )
    assert one.free_bytes - two.free_bytes == NEMO_BYTES[DType.BF16]
    assert one.fits[8] > two.fits[8]


@pytest.mark.parametrize("gpu", TARGETS)
@pytest.mark.parametrize("precision", NEMO_BYTES)
def test_what_is_said_to_fit_fits_and_a_step_more_does_not(
    gpu: str, precision: DType, nemo: dict[DType, Manifest]
) -> None:
    manifest, target = nemo[precision], target_named(gpu)

    def budget(slots: int, context: int) -> Budget:
        return engine_budget(manifest, target, max_seq_len=context, max_batch=slots)

    for slots, longest in engine_budget(manifest, target).fits.items():
        if longest:
            assert budget(slots, longest).free_bytes >= 0
        if longest < 131072:
            assert budget(slots, longest + 256).free_bytes < 0


def test_a_refusal_names_remedies_that_work(nemo: dict[DType, Manifest]) -> None:
    manifest, l40s = nemo[DType.BF16], target_named("l40s")
    asked = engine_budget(manifest, l40s, max_seq_len=32768, max_batch=8)
    with pytest.raises(BuildError, match=r"l40s must hold .* but it has 48 GB") as caught:
        require_fit(asked, manifest)
    said = str(caught.value)
    shorter = re.search(r"--max-seq-len (\d+)", said)
    fewer = re.search(r"--max-batch (\d+)", said)
    larger = re.search(r"a GPU like ([\w-]+)", said)
    assert shorter and fewer and larger and "--precision fp8" in said
    for better in (
        engine_budget(manifest, l40s, max_seq_len=int(shorter[1]), max_batch=8),
        engine_budget(manifest, l40s, max_seq_len=32768, max_batch=int(fewer[1])),
        engine_budget(manifest, target_named(larger[1]), max_seq_len=32768, max_batch=8),
    ):
        require_fit(better, manifest)


def test_weights_alone_can_be_too_many(nemo: dict[DType, Manifest]) -> None:
    budget = engine_budget(nemo[DType.BF16], target_named("l4"))
    assert budget.fits[1] == 0
    with pytest.raises(BuildError) as caught:
        require_fit(budget, nemo[DType.BF16])
    assert "--max-seq-len" not in str(caught.value) and "fp8" in str(caught.value)
    require_fit(engine_budget(nemo[DType.FP8], target_named("l4")), nemo[DType.FP8])


def test_two_plans_hold_the_weights_twice_and_one_is_named(nemo: dict[DType, Manifest]) -> None:
    a10 = target_named("a100-40gb")
    budget = engine_budget(nemo[DType.BF16], a10, max_seq_len=4096, num_plans=2)
    assert budget.weight_bytes == 2 * NEMO_BYTES[DType.BF16]
    with pytest.raises(BuildError, match="--single-plan"):
        require_fit(budget, nemo[DType.BF16])


@pytest.mark.parametrize("gpu", ["a100", "a10"])
def test_fp8_needs_tensor_cores_that_have_it(gpu: str, nemo: dict[DType, Manifest]) -> None:
    with pytest.raises(BuildError, match="no FP8 tensor cores"):
        require_fit(engine_budget(nemo[DType.FP8], target_named(gpu)), nemo[DType.FP8])


def test_fp32_bundles_are_refused(nemo: dict[DType, Manifest]) -> None:
    wide = replace(nemo[DType.BF16], precision=DType.FP32)
    with pytest.raises(BuildError, match="--precision bf16"):
        require_fit(engine_budget(wide, target_named("b200")), wide)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"prefill_chunk": 0}, "prefill_chunk"),
        ({"max_seq_len": 0}, "max_seq_len"),
        ({"max_seq_len": 131073}, "131072"),
    ],
)
def test_numbers_out_of_range_are_refused(
    options: dict[str, int], words: str, nemo: dict[DType, Manifest]
) -> None:
    with pytest.raises(RequestError, match=words):
        engine_budget(nemo[DType.BF16], target_named("h100"), **options)


def test_the_gpus_that_people_have_are_there_with_a_source() -> None:
    asked = "a100 a10 l4 l40s rtx4090 rtx5090 rtx-pro-6000 h100 h100-nvl h200 gh200 b200 b300"
    assert set(asked.split()) <= set(TARGETS)
    assert all(target.source.startswith("https://") for target in TARGETS.values())
    with pytest.raises(RequestError, match=r"h100.*got h99"):
        target_named("h99")


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("rtx 4090", "rtx4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("RTX_PRO_6000", "rtx-pro-6000"),
        ("NVIDIA GH200 480GB", "gh200"),
    ],
)
def test_a_gpu_is_known_as_nvidia_smi_prints_it(printed: str, name: str) -> None:
    assert target_named(printed).name == name


@pytest.mark.parametrize(
    "other", ["NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 D", "NVIDIA GH200 144G HBM3e", "nvidia"]
)
def test_a_gpu_of_other_memory_is_not_taken_for_its_namesake(other: str) -> None:
    with pytest.raises(RequestError, match=f"got {other}"):
        target_named(other)
