"""What the plugin launches, done by Triton's interpreter at the addresses it is given."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nemo_trt.engines.trt.attention import driver, plugin
from nemo_trt.engines.trt.attention.paged_attention import KernelFile, PagedAttention
from nemo_trt.engines.trt.attention.step import (
    Call,
    Scales,
    decode_constants,
    merge_constants,
    prefill_constants,
    write_constants,
)
from nemo_trt.engines.trt.attention.tiling import Tiling
from nemo_trt.errors import BuildError, MachineError

from .paged import POISON, Case, draw, error, exact, fill, softmax_scale

pytestmark = pytest.mark.model
E4M3 = torch.float8_e4m3fn
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", E4M3: "fp8"}
MOST_ROWS = 5


def record_of(case: Case, launch: Any) -> PagedAttention:
    """An engine's attention for a case, cut small."""
    heads = draw(case, launch).pages.heads(case.kv_heads * case.group)
    return PagedAttention(
        heads=heads,
        rows=MOST_ROWS,
        compute=NAMES[case.dtype],
        scales=((case.key_scale, case.value_scale) if case.cache else None,),
        decode=dict.fromkeys(NAMES.values(), Tiling(tile=16, programs=7)),
        prefill=dict.fromkeys(NAMES.values(), Tiling(tile=16, queries=32)),
        kernels=(),
    )


class Interpreter:
    """A `Launcher` that runs the kernels' source, with the constants they are compiled for."""

    def __init__(self, launch: Any, record: PagedAttention) -> None:
        self.kernels, self.memory = launch.KERNELS, {}
        heads, most = record.heads, {"tokens": 1, "rows": record.rows}
        self.constants = {
            "write": write_constants(heads),
            "decode": decode_constants(heads, record.decode["fp8"], **most),
            "merge": merge_constants(heads, record.decode["fp8"], **most),
            "prefill": prefill_constants(heads, record.prefill["fp8"]),
        }
        self.cache = record.caches[0]
        self.launched: list[str] = []

    def address(self, tensor: Tensor) -> int:
        """Where a tensor lies; it is kept."""
        self.memory[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def launch(self, call: Call, cache: str, pointers: Any, stream: int) -> None:
        assert cache == self.cache
        self.launched.append(call.kernel)
        tensors = {name: self.memory[address] for name, address in pointers.items()}
        self.kernels[call.kernel][call.grid](
            **tensors, **call.numbers, **self.constants[call.kernel]
        )


def enqueued(
    case: Case, launch: Any, enqueue: Any = plugin.run
) -> tuple[Tensor, Tensor, Interpreter]:
    """(what a step puts out, what it must, the launcher), over pages that hold what went before."""
    drawn = draw(case, launch)
    pages, record = drawn.pages, record_of(case, launch)
    before = replace(case, lengths=tuple(max(n - case.tokens, 0) for n in case.lengths))
    fill(before, drawn)
    shape = (len(case.lengths), case.kv_heads, case.tokens, case.head_dim)
    new = [torch.full(shape, 7.0, dtype=case.dtype) for _ in range(2)]  # padding
    for row, length in enumerate(case.lengths):
        start = max(length - case.tokens, 0)
        for target, dense in zip(new, (drawn.keys, drawn.values), strict=True):
            target[row, :, : length - start] = dense[row, :, start:length]
    query = drawn.query.contiguous()
    inputs = (query, *new, pages.keys, pages.values, pages.table, pages.starts, pages.lengths)
    out = torch.full_like(query, POISON)
    cache = record.caches[0]
    partial, whole = plugin.workspace_bytes(record, cache, len(case.lengths))
    memory = torch.full((whole // 4,), POISON)
    launcher = Interpreter(launch, record)
    launcher.address(memory[partial // 4 :])
    scales = Scales(scores=softmax_scale(case), keys=case.key_scale, values=case.value_scale)
    enqueue(
        record, cache, scales, launcher, [tuple(one.shape) for one in inputs],
        [launcher.address(one) for one in inputs], launcher.address(out), launcher.address(memory),
        5,
    )  # fmt: skip
    return out, exact(case, drawn, softmax_scale(case)), launcher


CASES = {
    "ragged": Case(lengths=(1, 70, 17), kv_heads=2),
    "idle rows": Case(lengths=(0, 40, 5), page=16),
    "head_dim 112, five a group": Case(lengths=(40, 7), head_dim=112, group=5, page=64),
    "an fp8 cache": Case(
        lengths=(40, 33), kv_heads=2, cache=E4M3, key_scale=0.011, value_scale=0.007
    ),
}


@pytest.mark.parametrize("tokens", [1, 21])
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_attention_in_float64(name: str, tokens: int, launch: Any) -> None:
    out, expected, launcher = enqueued(replace(CASES[name], tokens=tokens), launch)
    assert error(out, expected) < 8e-3
    attention = ["decode", "merge"] if tokens == 1 else ["prefill"]
    assert launcher.launched == ["write", *attention]


def test_the_plugin_of_tensorrt_does_the_same(launch: Any) -> None:
    """Through the library's own classes, from fields to `enqueue`."""
    api = pytest.importorskip("tensorrt_rtx", reason="the plugin is TensorRT's")

    def enqueue(
        record: PagedAttention, cache: str, scales: Scales, launcher: Any, shapes: Any, inputs: Any,
        out: int, memory: int, stream: int,
    ) -> None:  # fmt: skip
        maker = plugin.creator(api, record, launcher)
        wanted = zip(plugin.FIELDS, (scales.scores, scales.keys, scales.values), strict=True)
        kept = [(name, np.array([value], np.float32)) for name, value in wanted]
        kind, fp8 = api.PluginFieldType.FLOAT32, np.array([cache == "fp8"], np.int32)
        given = api.PluginFieldCollection(
            [api.PluginField(*one, kind) for one in kept]
            + [api.PluginField(plugin.FP8, fp8, api.PluginFieldType.INT32)]
        )
        built = maker.create_plugin("layer", given, api.TensorRTPhase.BUILD)
        again = maker.create_plugin(
            "layer", built.get_fields_to_serialize(), api.TensorRTPhase.RUNTIME
        )
        most = [SimpleNamespace(max=shape) for shape in shapes]
        assert again.get_workspace_size(most, None) == plugin.workspace_bytes(
            record, cache, shapes[0][0]
        )[1]  # fmt: skip
        described = [SimpleNamespace(dims=shape) for shape in shapes]
        ours = again.attach_to_context(None)
        pools = api.fp8 if cache == "fp8" else api.bfloat16
        types = [api.bfloat16] * 3 + [pools] * 2 + [api.int32] * 3 + [api.bfloat16] + [pools] * 2
        for at, wanted_type in enumerate(types):
            for found in (api.bfloat16, api.fp8, api.int32, api.float32):
                desc = SimpleNamespace(format=api.TensorFormat.LINEAR, type=found)
                tensors = {at: SimpleNamespace(desc=desc)}
                assert ours.supports_format_combination(at, tensors, 8) == (found == wanted_type)
        assert ours.enqueue(described, None, inputs, [out, 0, 0], memory, stream) == 0

    for name in ("an fp8 cache", "ragged"):
        out, expected, _ = enqueued(replace(CASES[name], tokens=1), launch, enqueue)
        assert error(out, expected) < 8e-3


def test_more_rows_than_the_kernels_were_compiled_for_are_refused(launch: Any) -> None:
    many = replace(CASES["ragged"], lengths=(1,) * (MOST_ROWS + 1))
    with pytest.raises(MachineError, match="at most 5 rows, got 6"):
        enqueued(many, launch)


def test_a_step_that_fails_answers_a_number_and_logs_why(
    launch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception must not pass through TensorRT's C++."""
    api = pytest.importorskip("tensorrt_rtx", reason="the plugin is TensorRT's")

    class Refusing:
        def launch(self, call: Call, cache: str, pointers: Any, stream: int) -> None:
            raise MachineError("CUDA's cuLaunchKernel failed: no reason.")

    case = CASES["ragged"]
    record = record_of(case, launch)
    kept = [np.ones(1, np.float32) for _ in plugin.FIELDS]
    kind = api.PluginFieldType.FLOAT32
    fields = [
        api.PluginField(name, one, kind) for name, one in zip(plugin.FIELDS, kept, strict=True)
    ]
    fields.append(api.PluginField(plugin.FP8, np.zeros(1, np.int32), api.PluginFieldType.INT32))
    given = api.PluginFieldCollection(fields)
    shapes = [(2, 8, 1, 64), *((2, 2, 1, 64),) * 2, *((9, 2, 32, 64),) * 2, (2, 4), (2,), (2,)]
    described = [SimpleNamespace(dims=shape) for shape in shapes]
    for launcher, answer in ((Refusing(), 1), (None, 0)):  # None: a build, in which nothing runs
        made = plugin.creator(api, record, launcher).create_plugin("l", given, None)
        assert made.enqueue(described, None, [0] * 8, [0], 0, 0) == answer
    assert "cuLaunchKernel failed" in caplog.text


def test_the_plugin_is_known_while_a_plan_is_made_or_loaded_and_no_longer(launch: Any) -> None:
    api = pytest.importorskip("tensorrt_rtx", reason="the plugin is TensorRT's")
    registry, record = api.get_plugin_registry(), record_of(CASES["ragged"], launch)

    def known() -> bool:
        return registry.get_creator(plugin.NAME, plugin.VERSION, plugin.NAMESPACE) is not None

    with pytest.raises(ValueError, match="a build fails"), plugin.registered(api, record, None):
        assert known()
        raise ValueError("a build fails")
    assert not known()


KERNEL = KernelFile(
    name="merge",
    cache="fp8",
    digest="0",
    entry="merge",
    num_warps=4,
    shared_bytes=0,
    parameters=(("out", "pointer"), ("rows", "i32"), ("scale", "fp32"), ("", "pointer")),
)


def test_arguments_come_in_the_kernels_order_and_triton_gets_null() -> None:
    call = Call(kernel="merge", grid=(1, 1, 1), numbers={"scale": 0.5, "rows": 3})
    values, kinds = driver.arguments(KERNEL, call, {"out": 64})
    assert values == (64, 3, 0.5, 0)
    assert [one.__name__ for one in kinds] == ["c_void_p", "c_int", "c_float", "c_void_p"]
    with pytest.raises(MachineError, match="multiples of 16, got out"):
        driver.arguments(KERNEL, call, {"out": 72})
    with pytest.raises(MachineError, match="takes"):
        driver.arguments(KERNEL, call, {})
    with pytest.raises(MachineError, match="takes"):
        driver.arguments(KERNEL, call, {"out": 64, "more": 64})


class Driver:
    """CUDA's driver, as far as the launcher calls it."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return 0, f"{name}'s"

        return call


def test_kernels_are_verified_loaded_and_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Any
) -> None:
    bindings = pytest.importorskip("cuda.bindings", reason="the border to CUDA's driver")
    from nemo_trt.digest import file_digest

    fake = Driver()
    monkeypatch.setattr(bindings, "driver", fake, raising=False)
    code = tmp_path / KERNEL.file
    code.parent.mkdir()
    code.write_bytes(b"code")
    kernel = replace(KERNEL, digest=file_digest(code), shared_bytes=70_000)
    record = replace(record_of(CASES["ragged"], launch), kernels=(kernel,))
    launcher = driver.DriverLauncher(tmp_path, record)
    call = Call(kernel="merge", grid=(2, 3, 4), numbers={"scale": 0.5, "rows": 3})
    launcher.launch(call, "fp8", {"out": 64}, 9)
    launcher.close()
    launcher.close()
    loaded, found, allowed, launched, unloaded = fake.calls
    assert loaded == ("cuModuleLoadData", b"code")
    assert found == ("cuModuleGetFunction", "cuModuleLoadData's", b"merge")
    assert allowed == ("cuFuncSetAttribute", "cuModuleGetFunction's", 8, 70_000)
    assert launched[:9] == ("cuLaunchKernel", "cuModuleGetFunction's", 2, 3, 4, 128, 1, 1, 70_000)
    assert launched[9] == 9 and launched[10][0] == (64, 3, 0.5, 0) and launched[11] == 0
    assert unloaded == ("cuModuleUnload", "cuModuleLoadData's")
    code.write_bytes(b"kode")
    other = replace(kernel, name="write", digest=file_digest(code))
    (tmp_path / other.file).write_bytes(b"loaded")
    other = replace(other, digest=file_digest(tmp_path / other.file))
    fake.calls.clear()
    with pytest.raises(BuildError, match="was altered"):
        driver.DriverLauncher(tmp_path, replace(record, kernels=(other, kernel)))
    assert fake.calls[-1] == ("cuModuleUnload", "cuModuleLoadData's"), "what was loaded is freed"
