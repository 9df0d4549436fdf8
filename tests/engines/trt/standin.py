"""A stand-in for TensorRT's runtime that records every call, and really computes.

A context runs the bundle's own graph through ONNX Runtime on whatever lies at the addresses that
were bound, so a session that binds the wrong row, length or buffer gives wrong numbers.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from nemo_trt import contract
from nemo_trt.engines.stored_graph import read_graph
from nemo_trt.engines.trt.attention.paged_attention import PagedAttention
from nemo_trt.engines.trt.attention.place import LENGTHS, PAGE_TABLE
from nemo_trt.engines.trt.attention.step import Heads
from nemo_trt.engines.trt.engine_record import BuildOptions, EngineRecord, PlanFile
from nemo_trt.engines.trt.lowering import LoweredGraph
from nemo_trt.engines.trt.profiles import PREFILL, decode_names, profile_named
from nemo_trt.engines.trt.stripped import without_weights
from nemo_trt.errors import MachineError
from nemo_trt.manifest import GRAPH_FILE, read_manifest
from nemo_trt.passes.add_candidates import OUTPUTS, TEMPERATURES
from nemo_trt.passes.graph_pass import apply
from nemo_trt.passes.merge_products import MergeProducts
from nemo_trt.passes.weights import attach, detach
from tests.engines.tail import with_candidates

from .fake_device import FakeDevice

T, ROWS, CHUNK, LOGITS = 64, 3, 8, 4
OPTIONS = BuildOptions(
    target="l4", sm=89, max_seq_len=T, max_batch=ROWS, prefill_chunk=CHUNK, max_logits=LOGITS
)
_BF16 = onnx.TensorProto.BFLOAT16
PROFILES = (PREFILL, *decode_names(ROWS))
_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
}


class FakePlan:
    """`Plan` of a bundle; `open_plan` of a session under test."""

    scratch_bytes = 1024
    page = 0  # tokens of a page, if the cache has pages

    def __init__(
        self,
        bundle: Path,
        device: FakeDevice,
        profiles: tuple[str, ...] = PROFILES,
        *,
        stripped: bool = False,
    ) -> None:
        self.device, self.contexts, self.closed = device, [], False
        self.profiles = profiles
        self.config = read_manifest(bundle).config
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(bundle)
        )
        graph = with_candidates(read_graph(bundle, GRAPH_FILE))
        self.weights: set[str] = set()  # that are inputs
        if stripped:
            graph, self.weights = with_weights_as_inputs(graph)
        self.session = ort.InferenceSession(graph.SerializeToString(), options)
        self.caches = {past for past, _ in contract.cache_names(self.config.num_layers)}
        self.outputs = {one.name for one in self.session.get_outputs()}

    def context(self, profile: int, stream: int, scratch: int, scratch_bytes: int) -> "FakeContext":
        assert scratch in self.device.live and stream == self.device.stream
        if scratch % 256:
            raise MachineError(f"Scratch must lie at a multiple of 256, got {scratch}.")
        if scratch_bytes < self.scratch_bytes:
            raise MachineError(
                f"Scratch must have {self.scratch_bytes} bytes, got {scratch_bytes}."
            )
        kind = PagedFakeContext if self.page else FakeContext
        self.contexts.append(kind(self, self.profiles[profile]))
        return self.contexts[-1]

    def of(self, profile: str) -> list["FakeContext"]:
        """The contexts of a profile, or of all whose names begin so."""
        return [context for context in self.contexts if context.profile.startswith(profile)]

    def keep_compiled(self) -> None:
        self.device.calls["kept"] += 1
        assert len(self.contexts) > 0

    def close(self) -> None:
        assert all(context.closed for context in self.contexts), "a plan outlives its contexts"
        self.closed = True


def with_weights_as_inputs(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, set[str]]:
    """What a stripped plan computes, and the inputs that are weights."""
    model = ir.from_proto(graph)
    attach(model, Path())
    apply(model, [MergeProducts()])
    weights = {name: np.zeros(0, np.uint8) for name in detach(model)}  # none is there
    lowered = LoweredGraph(
        model=ir.to_proto(model).SerializeToString(),
        weights=weights,
        num_layers=0,
        num_fp8_products=0,
    )
    return onnx.ModelProto.FromString(without_weights(lowered).model), set(weights)


class PagedFakePlan(FakePlan):
    """Of an engine with pages. What a row holds is put together, the bundle's graph runs over it,
    and the new tokens go to their pages: nothing at or behind a row's length is touched."""

    def __init__(
        self, bundle: Path, device: FakeDevice, paged: PagedAttention, *, stripped: bool = False
    ) -> None:
        super().__init__(bundle, device, stripped=stripped)
        self.page, self.scales = paged.heads.page, paged.scales


class FakeContext:
    """`Context` that refuses what TensorRT would."""

    def __init__(self, plan: FakePlan, profile: str) -> None:
        self.plan, self.profile = plan, profile
        self.limits = profile_named(profile, OPTIONS)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self.closed = False

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.calls[f"shape {name}"] += 1
        least, most = self.range_of(name)
        if len(shape) != len(least) or not all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        ):
            raise MachineError(f"{self.profile} takes {least} to {most} for {name}, got {shape}.")
        self.shapes[name] = shape

    def range_of(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes that the profile takes, from the least to the most."""
        config, page, rows = self.plan.config, self.plan.page, self.limits.rows
        if name in self.limits.least:
            return self.limits.least[name], self.limits.most[name]
        if name == PAGE_TABLE:
            table = (rows, replace(OPTIONS, page=page).row_pages)
            return table, table
        rest = (config.num_kv_heads, page or T, config.head_dim)
        return ((1, *rest), (2**22, *rest)) if page else ((rows, *rest), (rows, *rest))

    def set_address(self, name: str, address: int) -> None:
        self.calls[f"address {name}"] += 1
        self.addresses[name] = address

    def capturable(self, stream: int) -> bool:
        assert stream == FakeDevice.stream
        return True

    def enqueue(self, stream: int) -> None:
        assert stream == FakeDevice.stream and not self.closed
        self.require_bound()
        self.calls["enqueue"] += 1
        device = self.plan.device
        if device.recording is not None:
            if self.calls["enqueue"] == 1:  # TensorRT allocates in the first run
                device.require_no_capture("a first run")
            device.recording.append(self.replay(dict(self.shapes), dict(self.addresses)))
        else:
            self.run()

    def replay(
        self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]
    ) -> Callable[[], None]:
        """A run as it was captured: another shape, or an end of the context, makes it invalid."""

        def run() -> None:
            if self.closed or self.shapes != shapes:
                raise MachineError("A graph of a context must not outlive its shapes and itself.")
            now, self.addresses = self.addresses, addresses  # the graph holds those of then
            self.run()
            self.addresses = now

        return run

    def require_bound(self) -> None:
        """Every input has a shape, and every input and output has memory."""
        inputs = {*self.limits.least, *self.plan.caches, *([PAGE_TABLE] if self.plan.page else ())}
        if unset := sorted(inputs - self.shapes.keys()):
            raise MachineError(
                f"{self.profile} runs with a shape of each input, not without {unset}."
            )
        ends = inputs | self.plan.outputs | self.plan.weights
        if unset := sorted(ends - self.addresses.keys()):
            raise MachineError(
                f"{self.profile} runs with memory of each tensor, not without {unset}."
            )

    def compute(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of the graph; of a stripped plan, with what lies where its weights should."""
        values = {name: ort.OrtValue.ortvalue_from_numpy(one) for name, one in feeds.items()}
        for one in self.plan.session.get_inputs():
            if one.name not in self.plan.weights:
                continue
            assert self.addresses[one.name] % 256 == 0, "as TensorRT takes addresses"
            shape, code = tuple(one.shape), _BF16 if "bfloat16" in one.type else 0
            data = self.plan.device.at(
                self.addresses[one.name], shape, np.uint16 if code else _DTYPES[one.type]
            )
            make = partial(ort.OrtValue.ortvalue_from_numpy_with_onnx_type, onnx_element_type=code)
            values[one.name] = make(data) if code else ort.OrtValue.ortvalue_from_numpy(data)
        return [one.numpy() for one in self.plan.session.run_with_ort_values(names, values)]

    def run(self) -> None:
        device, session = self.plan.device, self.plan.session
        feeds = {
            one.name: device.at(self.addresses[one.name], self.shapes[one.name], _DTYPES[one.type])
            for one in session.get_inputs()
            if one.name not in self.plan.weights
        }
        ids = feeds[contract.INPUT_IDS]
        lengths = device.at(self.addresses[LENGTHS], self.shapes[LENGTHS], np.int32)
        assert (lengths == feeds[contract.WRITE_INDICES] + ids.shape[1]).all()
        for past, present in contract.cache_names(self.plan.config.num_layers):
            assert self.addresses[past] == self.addresses[present], "caches are not aliased"
        names = [one.name for one in session.get_outputs()]
        for name, result in zip(names, self.compute(names, feeds), strict=True):
            device.at(self.addresses[name], result.shape, result.dtype)[...] = result

    def close(self) -> None:
        self.closed = True


class PagedFakeContext(FakeContext):
    """Each row that is not idle by itself, over what its pages hold."""

    def run(self) -> None:
        ids, starts, wanted, lengths, table = (
            self.bound(name, dtype)
            for name, dtype in (
                (contract.INPUT_IDS, np.int64), (contract.WRITE_INDICES, np.int64),
                (contract.LOGIT_INDICES, np.int64), (LENGTHS, np.int32), (PAGE_TABLE, np.int32),
            )
        )  # fmt: skip
        degrees = self.bound(TEMPERATURES, np.float32)
        found: dict[str, list[np.ndarray]] = {name: [] for name in (contract.LOGITS, *OUTPUTS)}
        for row, length in enumerate(lengths):
            idle = length == 0
            assert idle or length == starts[row] + ids.shape[1], "padding is not run"
            one = self.row(
                ids[[row]], starts[[row]], wanted[[row]], table[row], int(length) or ids.shape[1],
                degrees[[row]], idle=idle,
            )  # fmt: skip
            for name, rows in found.items():
                rows.append(one[name])
        for name, rows in found.items():
            result = np.concatenate(rows)
            self.plan.device.at(self.addresses[name], result.shape, result.dtype)[...] = result

    def bound(self, name: str, dtype: Any) -> np.ndarray:
        """What lies at an input's address."""
        assert self.addresses[name] % 16 == 0, "the kernels take aligned addresses"
        return self.plan.device.at(self.addresses[name], self.shapes[name], dtype)

    def scale(self, cache: str) -> float | None:
        """Of a past or present name, if its pages are FP8."""
        scales = self.plan.scales[contract.layer_of(cache)]
        return scales[cache.endswith("value")] if scales else None

    def row(
        self,
        ids: np.ndarray,
        start: np.ndarray,
        wanted: np.ndarray,
        pages: np.ndarray,
        length: int,
        degrees: np.ndarray,
        *,
        idle: bool,
    ) -> dict[str, np.ndarray]:
        """One row's outputs but its cache; its new tokens are stored. Of an idle row, NaN."""
        config, page = self.plan.config, self.plan.page
        feeds = {contract.INPUT_IDS: ids, contract.WRITE_INDICES: start,
                 contract.LOGIT_INDICES: wanted, TEMPERATURES: degrees}  # fmt: skip
        names = list(contract.cache_names(config.num_layers))
        at = np.arange(length)
        spots = pages[at // page], slice(None), at % page
        pools = {}
        for past, present in names:
            assert self.addresses[past] == self.addresses[present], "caches are not aliased"
            scale = self.scale(past)
            pools[present] = self.bound(past, ml_dtypes.float8_e4m3fn if scale else np.float16)
            feeds[past] = np.zeros((1, config.num_kv_heads, length, config.head_dim), np.float16)
            held = pools[present][spots].swapaxes(0, 1).astype(np.float32)
            feeds[past][0] = held * (scale or 1)
            feeds[past][0, :, int(start[0]) :] = 0
        outputs = [contract.LOGITS, *OUTPUTS, *pools]
        found = dict(zip(outputs, self.compute(outputs, feeds), strict=True))
        kept = {name: found[name] for name in (contract.LOGITS, *OUTPUTS)}
        if idle:  # what it computes means nothing, and goes nowhere
            return {name: np.full_like(one, -1) for name, one in kept.items()}
        new = at >= start[0]
        for present, pool in pools.items():
            here = spots[0][new], slice(None), spots[2][new]
            made = found[present][0].swapaxes(0, 1)[new].astype(np.float32)
            scale = self.scale(present)
            pool[here] = (np.clip(made / scale, -448, 448) if scale else made).astype(pool.dtype)
        return kept


def plan_of(
    bundle: Path, device: FakeDevice, attention: str, *, stripped: bool = False
) -> FakePlan:
    """A plan of either attention."""
    if attention == "native":
        return FakePlan(bundle, device, stripped=stripped)
    return PagedFakePlan(bundle, device, paged_of(bundle), stripped=stripped)


def paged_of(bundle: Path, fp8: dict[int, tuple[float, float]] | None = None) -> PagedAttention:
    """The attention of an engine with pages, FP8 in the layers that have scales."""
    config = read_manifest(bundle).config
    heads = Heads(
        kv_heads=config.num_kv_heads,
        group=config.num_heads // config.num_kv_heads,
        head_dim=config.head_dim,
        page=16,
    )
    return PagedAttention(
        heads=heads, rows=ROWS, compute="fp16", decode={}, prefill={}, kernels=(),
        scales=tuple((fp8 or {}).get(layer) for layer in range(config.num_layers)),
    )  # fmt: skip


def record_of(
    bundle: Path, profiles: tuple[tuple[str, ...], ...] = (PROFILES,), **changed: Any
) -> EngineRecord:
    plan = PlanFile(
        file="", num_bytes=0, digest="", profiles=(), kernels={}, launches_per_layer={},
        scratch_bytes={},
    )  # fmt: skip
    record = EngineRecord(
        name="l4-fp16",
        build_id="",
        bundle_id=read_manifest(bundle).bundle_id,
        precision="fp16",
        options=OPTIONS,
        toolkit="tensorrt-rtx",
        toolkit_version="0",
        driver=None,
        weight_bytes=10**9,  # so that one run of more rows reads less than two runs
        plans=tuple(replace(plan, file=f"{p[0]}.plan", profiles=p) for p in profiles),
        build_s=0,
        peak_host_bytes=0,
        nemo_trt="0",
    )
    return replace(record, **changed)
