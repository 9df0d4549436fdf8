"""Products of one input become one product and a Split.

A merged product is one kernel on every target, and it is stored once in a plan of two profiles;
TensorRT's own merge is not done everywhere, and stores the weights a second time. The parts are
split on an axis of their own: a Split of the last axis would be drawn into the product again.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graph_pass import GraphPass, constant, make, nodes_of, source, take_over
from .weights import Array, LazyWeight, set_weight, weight_of


@dataclass(frozen=True, slots=True)
class _Product:
    """`x @ Transpose(weight)`, or `x @ Transpose(DequantizeLinear(weight, scale))`."""

    matmul: ir.Node
    transpose: ir.Node
    dequantize: ir.Node | None
    weight: LazyWeight

    @property
    def num_rows(self) -> int:
        return int(self.weight.shape.numpy()[0])

    def key(self) -> tuple[object, ...]:
        """Equal for products that one product can compute."""
        scale = b""
        if self.dequantize:
            tensor = ir.convenience.get_const_tensor(source(self.dequantize, 1))
            if tensor is None or len(tensor.shape) > 0:  # by row
                scale = (self.matmul.name or "").encode()
            else:
                scale = tensor.numpy().tobytes()
        return (source(self.matmul, 0), self.weight.dtype, scale)


class MergeProducts(GraphPass):
    """Merges products of one input, dtype and scale. Scales by row are not merged."""

    def change(self, graph: ir.Graph) -> None:
        """See `GraphPass.change`."""
        groups: dict[tuple[object, ...], list[_Product]] = {}
        for product in _products(graph):
            groups.setdefault(product.key(), []).append(product)
        for group in groups.values():
            if len(group) > 1:
                _merge(graph, group)


def _products(graph: ir.Graph) -> Iterator[_Product]:
    for matmul in nodes_of(graph, "MatMul"):
        transpose = source(matmul, 1).producer()
        if transpose is None or transpose.op_type != "Transpose":
            continue
        value = source(transpose, 0)
        dequantize = value.producer()
        if dequantize is not None:
            if dequantize.op_type != "DequantizeLinear":
                continue
            value = source(dequantize, 0)
        if (weight := weight_of(value)) is not None:
            yield _Product(matmul, transpose, dequantize, weight)


def _merge(graph: ir.Graph, group: list[_Product]) -> None:
    first = group[0]
    name = (first.matmul.name or "").rsplit(".", 2)[0] + ".merged"
    sizes = np.array([product.num_rows for product in group])
    unit = np.gcd.reduce(sizes)
    rows = int(sizes.sum())

    def number(part: str, value: list[int]) -> ir.Value:
        return constant(graph, f"{name}.{part}", ir.Tensor(np.array(value)))

    weight = ir.Value(name=f"{name}.weight")
    shape = ir.Shape([rows, int(first.weight.shape.numpy()[1])])
    set_weight(weight, first.weight.dtype, shape, _reader([product.weight for product in group]))
    graph.register_initializer(weight)
    new: list[ir.Node] = []
    stored = weight
    if first.dequantize is not None:
        inputs = [weight, *first.dequantize.inputs[1:]]
        new.append(make("DequantizeLinear", inputs, f"{name}.DequantizeLinear"))
        new[-1].attributes.update(first.dequantize.attributes)
        stored = new[-1].outputs[0]
    new.append(make("Transpose", [stored], f"{name}.Transpose", perm=[1, 0]))
    inputs = [first.matmul.inputs[0], new[-1].outputs[0]]
    new.append(make("MatMul", inputs, f"{name}.MatMul"))
    parts = number("parts", [0, 0, rows // unit, unit])
    new.append(make("Reshape", [new[-1].outputs[0], parts], f"{name}.Reshape"))
    split = ir.node(
        "Split",
        [new[-1].outputs[0], number("sizes", list(sizes // unit))],
        {"axis": 2},
        outputs=[ir.Value(name=f"{name}.Reshape.{index}") for index in range(len(group))],
        name=f"{name}.Split",
    )
    flat = number("flat", [0, 0, -1])
    ends = [make("Reshape", [part, flat], f"{part.name}.Reshape") for part in split.outputs]
    graph.insert_before(first.matmul, [*new, split, *ends])
    for product, end in zip(group, ends, strict=True):
        take_over(product.matmul.outputs[0], end.outputs[0])


def _reader(parts: list[LazyWeight]) -> Callable[[], Array]:
    return lambda: joined([part.read() for part in parts])


def joined(parts: list[Array]) -> Array:
    """Weights one below the other: a view where they lie so in their file."""
    maps = [part for part in parts if isinstance(part, np.memmap)]
    if len(maps) == len(parts) and all(
        one.filename == after.filename and one.offset + one.nbytes == after.offset
        for one, after in itertools.pairwise(maps)
    ):
        first = maps[0]
        shape = (sum(len(part) for part in maps), *first.shape[1:])
        assert first.filename is not None  # `map_weight` opens them by name
        whole: Array = np.memmap(first.filename, first.dtype, "r", first.offset, shape)
        return whole
    return np.concatenate([np.asarray(part) for part in parts])
