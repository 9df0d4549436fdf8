"""The TensorRT plugin: write new keys and values into their pages, then attend to the pages.

One class for TensorRT and TensorRT-RTX, which share their Python interface. It is given to a build
through the ONNX parser and to a plan as it is loaded, by name from TensorRT's registry.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nemo_trt.engines.trt.soname import make_parser_find_plugins
from nemo_trt.errors import MachineError

from .driver import Launcher
from .paged_attention import PagedAttention
from .step import (
    Call,
    Scales,
    Step,
    decode_calls,
    prefill_call,
    strides,
    workspace,
    write_call,
)

NAME, VERSION, NAMESPACE = "NemoPagedAttention", "1", ""
INPUTS = ("query", "new_keys", "new_values", "keys", "values", "table", "starts", "lengths")
OUTPUTS = ("out", "keys", "values")
"""Keys and values are updated in place: outputs 1 and 2 are inputs 3 and 4."""
FIELDS = ("scores", "keys", "values")
"""fp32 attributes of a node, of one layer: see `Scales`."""
FP8 = "fp8"
"""int attribute of a node: 1 if the layer's pages are E4M3, 0 if they have the compute dtype."""
_ALIASED = {1: 3, 2: 4}
_registering = threading.Lock()  # the registry is the process's, and the name is one
_LOG = logging.getLogger("nemo_trt.engines")


def attention_calls(
    record: PagedAttention, cache: str, scales: Scales, shapes: Sequence[Sequence[int]]
) -> list[Call]:
    """The launches of one layer's attention.

    Args:
        cache: dtype of the layer's pages.
        shapes: of `INPUTS`, in order.
    """
    heads, (rows, query_heads, tokens, head_dim) = record.heads, shapes[0]
    step = Step(rows=rows, tokens=tokens, table_stride=shapes[5][1])
    new = strides(heads.kv_heads, tokens, head_dim)
    of_query = strides(query_heads, tokens, head_dim)
    calls = [write_call(heads, step, scales, new)]
    if tokens == 1:
        calls += decode_calls(heads, step, scales, record.decode[cache], of_query, of_query)
    else:
        calls.append(prefill_call(heads, step, scales, record.prefill[cache], of_query, of_query))
    return calls


POINTERS = {
    "write": ("new_keys", "new_values", "keys", "values", "table", "starts", "lengths"),
    "decode": ("query", "keys", "values", "table", "starts", "lengths", "partial", "summary"),
    "merge": ("partial", "summary", "starts", "lengths", "out"),
    "prefill": ("query", "keys", "values", "table", "starts", "lengths", "out"),
}
"""What each kernel reads and writes."""


def workspace_bytes(record: PagedAttention, cache: str, rows: int) -> tuple[int, int]:
    """Of `partial`, and of all: decode's, which no other step exceeds."""
    partial, summary = workspace(record.heads, record.decode[cache], tokens=1, rows=rows)
    return 4 * partial, 4 * (partial + summary)


def run(
    record: PagedAttention,
    cache: str,
    scales: Scales,
    launcher: Launcher,
    shapes: Sequence[Sequence[int]],
    inputs: Sequence[int],
    out: int,
    workspace_address: int,
    stream: int,
) -> None:
    """Put one layer's attention on a stream; addresses are of `INPUTS`, in order.

    Raises:
        MachineError: the kernels do not take it, or CUDA refuses.
    """
    if shapes[0][0] > record.rows:
        raise MachineError(f"The kernels take at most {record.rows} rows, got {shapes[0][0]}.")
    partial, _ = workspace_bytes(record, cache, shapes[0][0])
    known = dict(zip(INPUTS, inputs, strict=True))
    known |= {"out": out, "partial": workspace_address, "summary": workspace_address + partial}
    for call in attention_calls(record, cache, scales, shapes):
        pointers = {name: known[name] for name in POINTERS[call.kernel]}
        launcher.launch(call, cache, pointers, stream)


def creator(api: Any, record: PagedAttention, launcher: Launcher | None) -> Any:
    """A creator of the plugin, for TensorRT's registry.

    Args:
        api: `tensorrt` or `tensorrt_rtx`.
        record: the engine's attention.
        launcher: of a GPU; None for a build, in which nothing runs.
    """
    parents = (
        api.IPluginV3,
        api.IPluginV3OneCore,
        api.IPluginV3OneBuildV2,
        api.IPluginV3OneRuntime,
    )
    numbers = {"bf16": api.bfloat16, "fp16": api.float16, "fp32": api.float32, "fp8": api.fp8}
    compute, integers = numbers[record.compute], (api.int32,) * 3
    kinds = {"float32": api.PluginFieldType.FLOAT32, "int32": api.PluginFieldType.INT32}

    class Plugin(*parents):  # type: ignore[misc]
        """One layer's attention."""

        def __init__(self, cache: str, scales: Scales) -> None:
            for parent in parents:
                parent.__init__(self)
            self.plugin_name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            self.num_outputs = len(OUTPUTS)
            self._cache, self._scales = cache, scales
            pools = (numbers[cache],) * 2
            self._types = (compute, compute, compute, *pools, *integers, compute, *pools)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def get_output_data_types(self, inputs: Any) -> list[Any]:
            return [inputs[0], inputs[3], inputs[4]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
            return [inputs[0], inputs[3], inputs[4]]

        def get_aliased_input(self, output: int) -> int:
            return _ALIASED.get(output, -1)

        def get_fields_to_serialize(self) -> Any:
            values = (self._scales.scores, self._scales.keys, self._scales.values)
            kept: list[Any] = [np.array([value], np.float32) for value in values]
            self._kept = [*kept, np.array([self._cache == FP8], np.int32)]
            return api.PluginFieldCollection(
                [
                    api.PluginField(name, value, kinds[value.dtype.name])
                    for name, value in zip((*FIELDS, FP8), self._kept, strict=True)
                ]
            )

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass

        def supports_format_combination(self, at: int, tensors: Any, num_inputs: int) -> bool:
            found = tensors[at].desc
            return bool(found.format == api.TensorFormat.LINEAR and found.type == self._types[at])

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return workspace_bytes(record, self._cache, inputs[0].max[0])[1]

        def enqueue(
            self, inputs: Any, outputs: Any, given: Any, made: Any, memory: int, stream: int
        ) -> int:
            if launcher is None:
                return 0
            try:
                shapes = [tuple(one.dims) for one in inputs]
                run(
                    record, self._cache, self._scales, launcher, shapes, given, made[0], memory,
                    stream,
                )  # fmt: skip
            except Exception:  # TensorRT's C++ calls this: it fails the step by a number
                _LOG.exception("paged attention failed")
                return 1
            return 0

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def set_tactic(self, tactic: int) -> None:
            pass

        def clone(self) -> Any:
            return Plugin(self._cache, self._scales)

    class Creator(api.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes the plugin of a node, in a build and from a plan."""

        def __init__(self) -> None:
            api.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = NAME, VERSION, NAMESPACE
            empty = np.array([], np.float32)
            self.field_names = api.PluginFieldCollection(
                [api.PluginField(name, empty, kinds["float32"]) for name in FIELDS]
                + [api.PluginField(FP8, empty.astype(np.int32), kinds["int32"])]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            found = {field.name: float(np.asarray(field.data).reshape(-1)[0]) for field in fields}
            cache = FP8 if found[FP8] else record.compute
            return Plugin(cache, Scales(**{field: found[field] for field in FIELDS}))

    return Creator()


@contextmanager
def registered(api: Any, record: PagedAttention, launcher: Launcher | None) -> Iterator[None]:
    """Give the plugin to whatever parses, builds or loads a plan meanwhile. See `creator`.

    One at a time: plugins that were made keep their own record and launcher.

    Raises:
        MachineError: TensorRT does not take it.
    """
    if api.__name__ == "tensorrt_rtx":
        make_parser_find_plugins()
    registry, made = api.get_plugin_registry(), creator(api, record, launcher)
    with _registering:
        if not registry.register_creator(made, NAMESPACE):
            raise MachineError(f"TensorRT must take the plugin {NAME}, but refuses it.")
        try:
            yield
        finally:
            registry.deregister_creator(made)
