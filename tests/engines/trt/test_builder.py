"""The builder on small engines, really compiled; each check is seen to fail on a planted fault."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.engines import planner
from nemo_trt.engines.targets import target_named
from nemo_trt.engines.trt import builder, lowering, network, profiles
from nemo_trt.engines.trt import compile as compiling
from nemo_trt.engines.trt.engine_record import BuildOptions, EngineRecord, read_record
from nemo_trt.engines.trt.kernels import Kernel
from nemo_trt.engines.trt.toolkit import load_toolkit, toolkit_for
from nemo_trt.errors import BuildError, MachineError
from nemo_trt.manifest import GRAPH_FILE, read_manifest
from nemo_trt.passes import merge_products
from nemo_trt.progress import Silent
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.e2e

pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
OPTIONS = BuildOptions(
    target="l4", sm=89, max_seq_len=256, max_batch=2, prefill_chunk=32, max_logits=8
)


def build(
    bundle: Bundle | Path, options: BuildOptions = OPTIONS, **more: Any
) -> tuple[EngineRecord, bool]:
    toolkit, target = load_toolkit("tensorrt-rtx"), target_named(options.target)
    return builder.build_plans(bundle, options, toolkit, target=target, **more)


def test_products_of_one_input_are_merged_and_their_weights_mapped(small: dict[str, Path]) -> None:

    for precision in ("bf16", "fp8"):
        graph = lowering.lower(small[precision], GRAPH_FILE, 256)
        names = {n.name for n in onnx.ModelProto.FromString(graph.model).graph.node}
        for layer in range(2):
            assert f"model.layers.{layer}.self_attn.merged.MatMul" in names
            assert f"model.layers.{layer}.mlp.merged.MatMul" in names
            assert f"model.layers.{layer}.self_attn.q_proj.MatMul" not in names
        assert graph.num_fp8_products == (8 if precision == "fp8" else 0)
        assert all(isinstance(weight, np.memmap) for weight in graph.weights.values())
        assert graph.num_bytes == stored_bytes(small[precision])


def stored_bytes(bundle: Path) -> int:
    """Bytes of all tensors."""
    from nemo_trt.safetensors import read_layout

    files = [bundle / weight.file for weight in read_manifest(bundle).weights]
    return sum(ref.num_bytes for file in files for ref in read_layout(file).values())


def test_merged_weights_that_lie_apart_are_joined(small: dict[str, Path]) -> None:

    parts = [np.arange(8, dtype=np.uint8), np.arange(4, dtype=np.uint8)]
    assert merge_products.joined(parts).tolist() == [*range(8), *range(4)]


def test_an_engine_is_built_once_and_recorded(small: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    with pytest.raises(BuildError, match="leave --timing-cache out"):
        build(small["fp8"], timing_cache=tmp_path / "timings")
    record, built = build(small["fp8"], log_file=log)
    assert built and "Layers:" in log.read_text()
    assert record == read_record(Bundle.open(small["fp8"]), "l4-fp8")
    assert record.toolkit == "tensorrt-rtx" and record.driver is None and record.options == OPTIONS
    (plan,) = record.plans
    assert (
        plan.profiles == ("prefill", "decode-1", "decode-2")
        and plan.num_bytes > record.weight_bytes
    )
    for profile in plan.profiles:
        assert any("mha" in name for name in plan.kernels[profile])
    assert plan.scratch_bytes["prefill"] > 0
    folder = small["fp8"] / "engines" / record.name
    (folder / "validation.json").write_text("{}")
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    again, built = build(small["fp8"])
    assert not built and again == record
    kept = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert kept == before, "the plan and its verdict"
    other, built = build(small["fp8"], replace(OPTIONS, max_batch=1))
    assert built and other.engine_id != record.engine_id


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_attention_in_fp16_has_as_many_kernels_and_is_another_engine(
    precision: str, small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, half = Bundle.open(small[precision]), replace(OPTIONS, kv_cache="fp16")
    with pytest.raises(BuildError, match="must have --attention native, got paged"):
        build(bundle, replace(half, attention="paged"))
    base, _ = build(bundle)
    check, kernels = builder.require_fused_decode, []

    def keep(found: list[Kernel], *arguments: Any, **more: Any) -> None:
        kernels.extend(found)
        check(found, *arguments, **more)

    monkeypatch.setattr(builder, "require_fused_decode", keep)
    for options in (replace(half, target="rtx5090", sm=120), half):
        kernels.clear()
        record, built = build(bundle, options)
        ends = [one for kernel in kernels for one in (*kernel.inputs, *kernel.outputs)]
        assert {one.dtype for one in ends if one.name.startswith("present.")} == {"Half"}
        assert built and record.name == f"{options.target}-{precision}-kv16"
        assert record.plans[0].launches_per_layer == base.plans[0].launches_per_layer
    assert read_record(bundle, record.name) == record and build(bundle, half) == (record, False)
    assert build(bundle) == (base, False), "they lie beside each other"


def test_a_plan_that_allocates_nothing_has_the_same_kernels_and_scratch(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    true, asked = compiling.builder_config, []

    def config(toolkit: Any, made: Any, options: BuildOptions) -> Any:
        found = true(toolkit, made, options)
        flag = getattr(toolkit.api.BuilderFlag, compiling.USER_ALLOCATION)
        asked.append(found.get_flag(flag))
        if len(asked) == 2:
            found.clear_flag(flag)
        return found

    monkeypatch.setattr(compiling, "builder_config", config)
    required, _ = build(small["bf16"], replace(OPTIONS, max_seq_len=272))
    monkeypatch.setattr(builder, "same_build", lambda *given: None)
    plain, _ = build(small["bf16"], replace(OPTIONS, max_seq_len=272))
    assert asked == [True, True]
    for one, other in zip(required.plans, plain.plans, strict=True):
        assert (one.kernels, one.scratch_bytes) == (other.kernels, other.scratch_bytes)


def test_separate_plans_hold_a_profile_each(small: dict[str, Path]) -> None:
    log = small["bf16"].parent / "separate.log"
    record, _ = build(small["bf16"], replace(OPTIONS, single_plan=False), log_file=log)
    assert log.read_text().count("Layers:") == 2  # of both
    assert [plan.profiles for plan in record.plans] == [
        ("prefill",),
        ("decode-1", "decode-2"),
    ]


def test_an_altered_plan_and_another_bundle_are_refused(
    small: dict[str, Path], tmp_path: Path
) -> None:
    build(small["bf16"])
    folder = small["bf16"] / "engines" / "l4-bf16"
    bundle = Bundle.open(small["bf16"])
    with pytest.raises(BuildError, match=r"another bundle.*nemo-trt build .* --gpu l4"):
        read_record(replace(bundle, manifest=replace(bundle.manifest, graph_sha256="")), "l4-bf16")
    plan = folder / "engine.plan"
    whole = plan.read_bytes()
    try:
        plan.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        with pytest.raises(BuildError, match="altered"):
            read_record(bundle, "l4-bf16")
        plan.write_bytes(whole[:-1])
        with pytest.raises(BuildError, match="cut short"):
            read_record(bundle, "l4-bf16")
    finally:
        plan.write_bytes(whole)
    with pytest.raises(BuildError, match="must have an engine nothing, got l4-bf16"):
        read_record(bundle, "nothing")


def test_a_cache_that_is_copied_in_decode_fails_the_build(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_without_unit_scale", lambda api, tensor, producers: tensor)
    monkeypatch.setattr(network, "_require_counts", lambda *arguments: None)
    with pytest.raises(BuildError, match=r"in place, but .* copies past_key_values"):
        build(small["bf16"], replace(OPTIONS, max_seq_len=512))


def test_a_decode_profile_with_a_range_of_tokens_fails_the_build(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = profiles.profile_named

    def ranged(name: str, options: BuildOptions) -> profiles.Profile:
        profile = true(name, options)
        if profiles.is_decode(name):
            profile.most["input_ids"] = (profile.rows, 2)
        return replace(profile, least=profiles.step_inputs(profile.rows, 1, 1))

    monkeypatch.setattr(compiling, "profile_named", ranged)
    with pytest.raises(BuildError, match=r"Decode must (read the cache|have one fused|update)"):
        build(small["bf16"], replace(OPTIONS, max_seq_len=768))


def test_past_the_ceiling_of_fused_attention_the_build_says_how_far_it_goes(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(OPTIONS, max_seq_len=65536, max_batch=1)
    with pytest.raises(BuildError, match=r"65536 tokens a row: 24448 tokens are") as caught:
        build(small["bf16"], long)
    assert "--max-seq-len 24448, with --attention paged" in str(caught.value)
    build(small["bf16"], replace(long, max_seq_len=24448))
    # One more does not compile: the arithmetic is TensorRT's. Where it is not known, builds tell.
    monkeypatch.setattr(planner, "FUSED_SMS", ())
    with pytest.raises(BuildError, match=r"24449 tokens .* most of those tried") as caught:
        build(small["bf16"], replace(long, max_seq_len=24449))
    assert "--max-seq-len 24064" in str(caught.value)  # a multiple of 512
    record, _ = build(small["bf16"], replace(long, allow_unfused=True))
    assert not any("gemv_mha" in name for name in record.plans[0].kernels["decode-1"])


def test_a_gpu_without_fp8_is_refused_before_anything_is_built(small: dict[str, Path]) -> None:
    a100 = target_named("a100")
    options = replace(OPTIONS, target="a100", sm=80)
    with pytest.raises(BuildError, match="no FP8 tensor cores"):
        builder.build_plans(small["fp8"], options, load_toolkit("tensorrt-rtx"), target=a100)


def test_a_hopper_build_says_what_is_missing_and_what_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nemo_trt.engines.trt.toolkit.gpus", lambda: ())
    monkeypatch.setattr("nemo_trt.engines.trt.toolkit.is_installed", lambda name: False)
    with pytest.raises(MachineError) as caught:
        toolkit_for(target_named("h100"), "auto", "nemo-trt build b --gpu h100")
    assert "library tensorrt and an sm_90 GPU (here: none)" in str(caught.value)
    assert str(caught.value).endswith("pip install 'nemo-trt[gpu]' && nemo-trt build b --gpu h100.")
    with pytest.raises(MachineError, match="tensorrt-rtx does not serve h100"):
        toolkit_for(target_named("h100"), "tensorrt-rtx", "")


# A shell starts what runs in the background with SIGINT ignored, and children inherit that. The
# compiler goes on when it has been told to stop, so that the build cannot end before the signal.
_INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from nemo_trt.cli.console import Bar
from nemo_trt.cli.main import main
from nemo_trt.engines.trt import compile as compiling
stops, monitor_of, phase = [], compiling._monitor, Bar.phase
def watched(*given):
    monitor = monitor_of(*given)
    stops.append(monitor.stop)
    return monitor
def held(self, name, *rest):
    phase(self, name, *rest)
    if "optimizing graph" in name:
        stops[-1].wait(300)
compiling._monitor, Bar.phase = watched, held
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_nothing_half_written(number: int, code: int, small: dict[str, Path]) -> None:
    """A stop while TensorRT compiles: the signal's exit code, no folder, no leftovers."""
    options = ["--gpu", "rtx5090", "--max-seq-len", "1024", "--max-batch", "4"]
    engines = small["fp8"] / "engines"
    before = set(engines.glob("*"))
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, "build", str(small["fp8"]), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "optimizing graph" in line:
            break
    os.kill(process.pid, number)
    process.communicate()
    assert process.wait(LIMIT_S) == code
    assert set(engines.glob("*")) == before


def test_a_kill_leaves_nothing_that_counts(small: dict[str, Path]) -> None:
    code = "from nemo_trt.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "build", str(small["fp8"]), "--gpu", "rtx5090"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "cloning" in line:
            break
    process.kill()
    process.communicate()
    engines = small["fp8"] / "engines"
    assert not (engines / "rtx5090-fp8").exists()
    target = replace(OPTIONS, target="rtx5090", sm=120)
    builder.build_plans(
        small["fp8"], target, load_toolkit("tensorrt-rtx"), target=target_named("rtx5090")
    )
    assert not [path for path in engines.iterdir() if path.name.endswith(".partial")]


def test_progress_tells_phases_in_steps(small: dict[str, Path]) -> None:
    class Recorder(Silent):
        def __init__(self) -> None:
            self.phases: list[tuple[str, int]] = []
            self.steps = 0

        def phase(self, name: str, total: int = 0, unit: str = "steps") -> None:
            self.phases.append((name, total))

        def advance(self, amount: int = 1) -> None:
            self.steps += amount

    recorder = Recorder()
    start = time.monotonic()
    build(small["bf16"], replace(OPTIONS, max_seq_len=320), progress=recorder)
    assert time.monotonic() > start and recorder.steps > 5
    assert [name for name, total in recorder.phases if total > 1 and name.startswith("engine: ")]


def test_engine_json_is_readable_and_damage_is_seen(small: dict[str, Path]) -> None:
    record, _ = build(small["bf16"])
    text = record.to_json()
    assert EngineRecord.from_json(text) == record
    data = json.loads(text)
    data["plans"][0]["digest"] = "0"
    for damaged in ("{", "{}", json.dumps(data), text.replace("engine.plan", "../engine.plan")):
        with pytest.raises(BuildError):
            EngineRecord.from_json(damaged)
