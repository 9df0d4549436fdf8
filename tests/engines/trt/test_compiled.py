"""Engines of Nemo's real dimensions and of real weights, compiled for two GPUs.

What the log and the network show of them is what no GPU is needed for.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.planner import engine_budget
from nemo_trt.engines.targets import target_named
from nemo_trt.engines.trt import builder
from nemo_trt.engines.trt import compile as compiling
from nemo_trt.engines.trt.engine_record import BuildOptions, EngineRecord
from nemo_trt.engines.trt.kernels import Kernel, is_attention
from nemo_trt.engines.trt.toolkit import load_toolkit
from nemo_trt.export.samples import SHAPES
from nemo_trt.manifest import read_manifest

from .conftest import write_bundles

pytestmark = pytest.mark.e2e

pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
T = 4096
MAX_LAUNCHES = {"bf16": 9, "fp8": 10}


class Built:
    """An engine that was built, and the kernels of its decode profiles."""

    def __init__(self, bundle: Path, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
        target = target_named(gpu)
        self.decode: list[list[Kernel]] = []
        self.network: Any = None
        check, mend = builder.require_fused_decode, compiling.mend

        def keep_kernels(kernels: Any, *arguments: Any, **more: Any) -> None:
            self.decode.append(list(kernels))
            check(kernels, *arguments, **more)

        def look(toolkit: Any, network: Any, **more: Any) -> None:
            mend(toolkit, network, **more)
            self.attentions = _attentions(toolkit.api, network)

        monkeypatch.setattr(builder, "require_fused_decode", keep_kernels)
        monkeypatch.setattr(compiling, "mend", look)
        self.log = bundle / "build.log"
        options = BuildOptions(
            target=gpu,
            sm=target.sm,
            max_seq_len=T,
            max_batch=4,
            prefill_chunk=1024,
            max_logits=64,
        )
        self.record: EngineRecord
        self.record, _ = builder.build_plans(
            bundle, options, load_toolkit("tensorrt-rtx"), target=target, log_file=self.log
        )
        shutil.rmtree(bundle / "engines")  # gigabytes


def _attentions(api: Any, network: Any) -> list[tuple[str | None, bool, bool]]:
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == api.LayerType.ATTENTION_INPUT:
            layer.__class__ = api.IAttentionInputLayer
            lengths = layer.attention.key_value_lengths
            corner = layer.attention.causal_kind == api.CausalMaskKind.LOWER_RIGHT
            found.append((lengths and lengths.name, corner, layer.attention.decomposable))
    return found


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two layers of Nemo's real dimensions, vocabulary and all: 3.8 GB, and 3.2 GB in FP8."""
    folder = tmp_path_factory.mktemp("nemo")
    yield write_bundles(folder, replace(SHAPES["nemo-12b"], num_layers=2))
    shutil.rmtree(folder)


@pytest.mark.parametrize(("precision", "gpu"), [("bf16", "l4"), ("fp8", "rtx5090")])
def test_two_layers_of_nemo(
    precision: str, gpu: str, nemo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other two pairs are compiled below: FP8 for an L4 with pages, BF16 for an RTX 5090."""
    built = Built(nemo[precision], gpu, monkeypatch)
    config = read_manifest(nemo[precision]).config
    # Every attention has lengths and the lower right corner, and must be fused.
    assert built.attentions == [("lengths", True, False)] * 2
    assert "Unused Input" not in built.log.read_text()
    (plan,) = built.record.plans
    assert [*plan.launches_per_layer] == ["prefill", "decode-1", "decode-2", "decode-4"]
    assert len(built.decode) == 3
    for rows, kernels in zip((1, 2, 4), built.decode, strict=True):
        # One fused attention a layer reads the cache; nothing copies or expands it.
        assert [k.name for k in kernels if is_attention(k)] == ["_gemv_mha_v1"] * 2
        cache = (rows, config.num_kv_heads, T, config.head_dim)
        for kernel in kernels:
            assert not [one for one in kernel.inputs if one.name.startswith("past_key_values")]
            large = [one for one in kernel.outputs if T in one.shape]
            assert all(one.name.startswith("present.") and one.shape == cache for one in large)
            assert not [one for one in kernel.outputs if -1 in one.shape], "rows are fixed"
        assert plan.launches_per_layer[f"decode-{rows}"] <= MAX_LAUNCHES[precision]
        # Products take the operands that they should, merged ones and all.
        products = [k for k in kernels if k.kind in ("gemm", "runtime_fusion")]
        fp8 = [k for k in products if any(one.dtype == "FP8" for one in k.inputs)]
        assert len(products) == 4 * 2 + 1
        assert len(fp8) == (4 * 2 if precision == "fp8" else 0)
    # The weights lie in the plan once, though it has four profiles.
    assert built.record.weight_bytes <= plan.num_bytes <= 1.01 * built.record.weight_bytes
    # The planner's scratch is an upper bound, and not a wild one.
    budget = engine_budget(
        read_manifest(nemo[precision]),
        target_named(gpu),
        max_seq_len=T,
        max_batch=4,
        prefill_chunk=1024,
    )
    scratch = max(plan.scratch_bytes.values())
    assert 0.5 * budget.scratch_bytes <= scratch <= budget.scratch_bytes


def test_two_layers_of_nemo_with_pages_at_the_models_whole_context(nemo: dict[str, Path]) -> None:
    """131,072 tokens a row: TensorRT's own attention ends at 24,448."""
    pytest.importorskip("triton", reason="the kernels are compiled by Triton")
    bundle, target = nemo["fp8"], target_named("l4")
    options = BuildOptions(
        target="l4", sm=target.sm, max_seq_len=131_072, max_batch=4, prefill_chunk=1024,
        max_logits=64, attention="paged",
    )  # fmt: skip
    record, _ = builder.build_plans(bundle, options, load_toolkit("tensorrt-rtx"), target=target)
    shutil.rmtree(bundle / "engines")
    (plan,) = record.plans
    assert record.weight_bytes <= plan.num_bytes <= 1.01 * record.weight_bytes
    budget = engine_budget(
        read_manifest(bundle), target, max_seq_len=131_072, max_batch=4, paged=True
    )
    scratch = max(plan.scratch_bytes.values())
    assert 0.5 * budget.scratch_bytes <= scratch <= budget.scratch_bytes <= 200e6
    for rows in (1, 2, 4):
        assert plan.launches_per_layer[f"decode-{rows}"] <= 14


def test_layers_of_the_sample_model(
    shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three query heads a kv head, of 64 dimensions, and a head that is the embedding."""
    bundle = shutil.copytree(shallow.bundle, tmp_path / "bundle")  # it is written into
    built = Built(bundle, "rtx5090", monkeypatch)
    layers = read_manifest(bundle).config.num_layers
    assert built.attentions == [("lengths", True, False)] * layers
    (plan,) = built.record.plans
    for rows, kernels in zip((1, 2, 4), built.decode, strict=True):
        assert len([k for k in kernels if is_attention(k)]) == layers
        assert plan.launches_per_layer[f"decode-{rows}"] <= MAX_LAUNCHES["bf16"]
