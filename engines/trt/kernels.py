"""Reads the kernels of a plan out of TensorRT's verbose build log, and checks the decode profile.

Without a GPU a plan cannot be opened, so the log is the only witness of what was compiled.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemo_trt import contract
from nemo_trt.config import ModelConfig
from nemo_trt.errors import BuildError

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\S+), Inputs: \[(?P<rest>.*)$")
_TENSOR = re.compile(
    r"Name: ([^,]+), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+)"
)
_PLUGIN = "PluginV3"
_PROFILE = re.compile(r" \[profile (\d+)\]")
_GRAPH = re.compile(r"_(myl\d+)_\d+$")
_NO_KERNEL = {"signal", "wait", "shape_call", "NoOp"}
READ_LINES = ("Layers:", "Max Scratch Memory", "Unused Input")
"""What the lines hold that a build reads: however long the log is, they are kept."""
_SCRATCH = re.compile(r"^Max Scratch Memory: (\d+) bytes", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A tensor that a kernel reads or writes; a dimension that is not fixed is -1."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel launch of a profile.

    Attributes:
        name: TensorRT's, without the numbers that make it unique.
        kind: "gemm", "kgen" (generated), "runtime_fusion", "copy", ...
    """

    name: str
    kind: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


def read_kernels(lines: Iterable[str], num_profiles: int) -> list[list[Kernel]]:
    """The kernels of each profile, in order, from a verbose log.

    Raises:
        BuildError: the log does not list them.
    """
    found: list[tuple[str, int, Kernel]] = []
    owners: dict[str, int] = {}  # graph -> profile, for kernels whose line names no profile
    for line in _layer_lines(lines):
        match = _LINE.match(line)
        if match is None or match["kind"] in _NO_KERNEL:
            continue
        graph = _GRAPH.search(match["name"])
        label = graph[1] if graph else ""
        marked = _PROFILE.search(line)
        profile = int(marked[1]) if marked else 0
        if marked and label:
            owners[label] = profile
        found.append((label, profile, _kernel(match)))
    profiles: list[list[Kernel]] = [[] for _ in range(num_profiles)]
    for label, profile, kernel in found:
        index = profile or owners.get(label, 0)
        if index < num_profiles:
            profiles[index].append(kernel)
    if not all(profiles):
        raise BuildError("TensorRT's log must list the kernels of every profile, got none of one.")
    return profiles


def _layer_lines(lines: Iterable[str]) -> Iterable[str]:
    for message in lines:
        if message.startswith("Layers:"):
            yield from message.splitlines()


def _kernel(match: re.Match[str]) -> Kernel:
    inputs, _, rest = match["rest"].partition("], Outputs: [")
    inputs = inputs.partition("], Constants: [")[0]
    outputs = rest.partition("], TacticName:")[0]
    name = _PROFILE.sub("", _GRAPH.sub("", match["name"]))
    return Kernel(
        name=re.sub(r"_U\d+", "", name),
        kind=match["kind"],
        inputs=_operands(inputs),
        outputs=_operands(outputs),
    )


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(
        Operand(
            name=_PROFILE.sub("", name),
            shape=tuple(int(n) for n in shape.split(",") if n),
            dtype=dtype,
        )
        for name, shape, dtype in _TENSOR.findall(text)
    )


def scratch_bytes(lines: Sequence[str]) -> list[int]:
    """Device memory that each profile needs beside weights and inputs, by the log."""
    return [int(size) for size in _SCRATCH.findall("\n".join(lines))]


def per_layer(kernels: Sequence[Kernel], num_layers: int) -> dict[str, float]:
    """Kernel name -> launches a layer, for those that occur in layers; layer numbers left out."""
    counts = Counter(re.sub(r"model\.layers\.\d+\.", "", kernel.name) for kernel in kernels)
    return {name: round(count / num_layers, 2) for name, count in counts.most_common()}


def launches_per_layer(kernels: Sequence[Kernel], num_layers: int) -> float:
    """Kernels from one attention to the next, mean: the launches that each layer adds.

    Of one layer, all kernels.
    """
    where = [index for index, kernel in enumerate(kernels) if is_attention(kernel)]
    if len(where) < 2:
        return float(len(kernels)) / num_layers
    return (where[-1] - where[0]) / (len(where) - 1)


def is_attention(kernel: Kernel) -> bool:
    """Whether a kernel is a fused attention."""
    return "_mha_" in kernel.name or kernel.kind == _PLUGIN


def require_fused_decode(
    kernels: Sequence[Kernel], config: ModelConfig, capacity: int, *, fp8_products: int
) -> None:
    """Check the decode profile: what the log shows to be slow is refused.

    - one fused attention a layer that reads the cache in place;
    - no kernel copies a cache, or writes keys or values expanded to all query heads;
    - every FP8 product has FP8 operands.

    Raises:
        BuildError: a check fails.
    """
    attentions = [kernel for kernel in kernels if is_attention(kernel)]
    if len(attentions) != config.num_layers:
        raise BuildError(
            f"Decode must have one fused attention a layer, {config.num_layers}, got "
            f"{len(attentions)}. Build with a smaller --max-seq-len, or with --allow-unfused."
        )
    for kernel in attentions:
        if sum(one.name.startswith("present.") for one in kernel.inputs) != 2:
            raise BuildError(
                f"Decode must read the cache as it is, but {kernel.name} reads "
                f"{', '.join(one.name for one in kernel.inputs)}."
            )
    matrix = sorted((capacity, config.head_dim))  # keys or values of one head
    for kernel in kernels:
        copied = [one.name for one in kernel.inputs if one.name.startswith(contract.PAST)]
        if copied:
            raise BuildError(
                f"Decode must update caches in place, but {kernel.name} copies {copied[0]}."
            )
        for one in kernel.outputs:
            if sorted(one.shape[-2:]) == matrix and not one.name.startswith("present."):
                raise BuildError(
                    f"Decode must read the cache as it is, but {kernel.name} writes {one.name} of "
                    f"{list(one.shape)}."
                )
    _require_fp8_products(kernels, fp8_products)


def require_paged_decode(
    kernels: Sequence[Kernel], config: ModelConfig, page: int, *, fp8_products: int
) -> None:
    """Check the decode profile of an engine with pages: no kernel but the plugin touches a pool.

    Raises:
        BuildError: a check fails.
    """
    plugins = sum(kernel.kind == _PLUGIN for kernel in kernels)
    if plugins != config.num_layers:
        raise BuildError(
            f"Decode must have one attention of ours a layer, {config.num_layers}, got {plugins}."
        )
    block = (config.num_kv_heads, page, config.head_dim)
    for kernel in kernels:
        if kernel.kind == _PLUGIN:
            continue
        for one in (*kernel.inputs, *kernel.outputs):
            if one.shape[-3:] == block or one.name.startswith((contract.PAST, "present.")):
                raise BuildError(
                    f"Only the plugin may touch the cache, but {kernel.name} takes {one.name} of "
                    f"{list(one.shape)}."
                )
    _require_fp8_products(kernels, fp8_products)


def _require_fp8_products(kernels: Sequence[Kernel], fp8_products: int) -> None:
    """Raises:
    BuildError: fewer products than that take FP8 operands.
    """
    products = sum(_is_fp8_product(kernel) for kernel in kernels)
    if products < fp8_products:
        raise BuildError(
            f"{fp8_products} products must take FP8 operands, got {products}: TensorRT widened "
            "them first."
        )


def _is_fp8_product(kernel: Kernel) -> bool:
    return kernel.kind in ("gemm", "runtime_fusion") and any(
        o.dtype == "FP8" for o in kernel.inputs
    )
