"""Lowers a bundle's graph for TensorRT: fixes T, merges products, scales the queries in fp32.

A merged product is one kernel on every target, and it is stored once in a plan of two profiles;
TensorRT's own merge is not done everywhere, and stores the weights a second time. The parts are
split on an axis of their own: a Split of the last axis would be drawn into the product again.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nemo_trt import contract
from nemo_trt.engines.stored_graph import read_graph, replace
from nemo_trt.errors import BundleError

from .attention.place import DOMAIN, Placement, place

_EXTERNAL = TensorProto.EXTERNAL


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredGraph:
    """A graph for the ONNX parser, and the bytes of its weights.

    Attributes:
        model: serialised, its weights marked external.
        weights: name -> its bytes, mapped from the bundle's files where they lie together.
        num_layers: attentions.
        num_fp8_products: matrix products with an FP8 weight, merged ones counted once.
    """

    model: bytes
    weights: dict[str, NDArray[np.uint8]]
    num_layers: int
    num_fp8_products: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights, which a plan must hold."""
        return sum(weight.nbytes for weight in self.weights.values())


@dataclass(frozen=True, slots=True)
class _Product:
    """`x @ Transpose(weight)`, or `x @ Transpose(DequantizeLinear(weight, scale))`."""

    matmul: onnx.NodeProto
    transpose: onnx.NodeProto
    dequantize: onnx.NodeProto | None
    weight: onnx.TensorProto

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return [n for n in (self.dequantize, self.transpose, self.matmul) if n is not None]


def lower(
    bundle: Path, graph_file: str, capacity: int, paged: Placement | None = None
) -> LoweredGraph:
    """Read a bundle's graph and lower it for a cache of `capacity` tokens a row.

    With `paged` the cache is a pool of pages, and attention the plugin's.

    Memory: the graph, and a copy of merged weights that do not lie together in their file.

    Raises:
        BundleError: the graph or a weight cannot be read.
    """
    model = read_graph(bundle, graph_file)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "T":
                dimension.dim_value = capacity
    return lower_model(model, bundle, paged)


def lower_model(
    model: onnx.ModelProto, bundle: Path, paged: Placement | None = None
) -> LoweredGraph:
    """`lower` of a graph of fixed T, or of a piece of one, whose weights lie in `bundle`.

    The model is altered.
    """
    graph = model.graph
    del graph.value_info[:]  # they may still say T
    weights = {i.name: _map(i, bundle) for i in graph.initializer if i.data_location == _EXTERNAL}
    num_layers = sum(node.op_type == "Attention" for node in graph.node)
    _merge_products(graph, weights)
    if paged:
        place(graph, paged)
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    else:
        _scale_queries_in_fp32(graph)
    return LoweredGraph(
        model=model.SerializeToString(),
        weights=weights,
        num_layers=num_layers,
        num_fp8_products=sum(
            node.op_type == "DequantizeLinear" and node.input[0] in weights for node in graph.node
        ),
    )


def _map(initializer: onnx.TensorProto, bundle: Path) -> NDArray[np.uint8]:
    where = {entry.key: entry.value for entry in initializer.external_data}
    path = bundle / where["location"]
    try:
        return np.memmap(path, np.uint8, "r", int(where["offset"]), (int(where["length"]),))
    except (OSError, ValueError) as error:
        raise BundleError(f"Weight {initializer.name} cannot be read: {error}.") from error


def _merge_products(graph: onnx.GraphProto, weights: dict[str, NDArray[np.uint8]]) -> None:
    """Turn products of one input, dtype and scale into one product and a Split."""
    constants = {initializer.name: initializer for initializer in graph.initializer}
    removed: set[str] = set()  # nodes, by their first output
    inserted: dict[str, list[onnx.NodeProto]] = {}
    dropped: set[str] = set()
    for group in _mergeable(graph, constants):
        first = group[0]
        name = first.matmul.name.rsplit(".", 2)[0] + ".merged"
        parts = [weights.pop(product.weight.name) for product in group]
        weights[f"{name}.weight"] = _joined(parts)
        merged = TensorProto()
        merged.CopyFrom(first.weight)
        merged.name = f"{name}.weight"
        merged.dims[0] = sum(product.weight.dims[0] for product in group)
        sizes = np.array([product.weight.dims[0] for product in group])
        unit = np.gcd.reduce(sizes)
        graph.initializer.append(merged)
        for constant, value in (
            ("sizes", sizes // unit),
            ("parts", np.array([0, 0, sizes.sum() // unit, unit])),
            ("flat", np.array([0, 0, -1])),
        ):
            graph.initializer.append(numpy_helper.from_array(value, f"{name}.{constant}"))
        scales = [product.dequantize.input[1] for product in group if product.dequantize]
        inserted[first.nodes[0].output[0]] = _merged_nodes(name, group)
        removed |= {node.output[0] for product in group for node in product.nodes}
        dropped |= {product.weight.name for product in group} | set(scales[1:])
    nodes = []
    for node in graph.node:
        nodes += inserted.get(node.output[0], [])
        if node.output[0] not in removed:
            nodes.append(node)
    replace(graph.node, nodes)
    replace(graph.initializer, [i for i in graph.initializer if i.name not in dropped])


def _mergeable(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto]
) -> Iterator[list[_Product]]:
    """Groups of two products and more that one product can compute."""
    producers = {output: node for node in graph.node for output in node.output}
    groups: dict[tuple[object, ...], list[_Product]] = {}
    for node in graph.node:
        product = _product(node, producers, constants) if node.op_type == "MatMul" else None
        if product is None:
            continue
        scale = b""
        if product.dequantize:
            value = numpy_helper.to_array(constants[product.dequantize.input[1]])
            scale = value.tobytes() if value.ndim == 0 else product.matmul.name.encode()
        weight = product.weight
        key = (node.input[0], weight.data_type, weight.dims[1], scale)
        groups.setdefault(key, []).append(product)
    yield from (group for group in groups.values() if len(group) > 1)


def _product(
    matmul: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
) -> _Product | None:
    transpose = producers.get(matmul.input[1])
    if transpose is None or transpose.op_type != "Transpose":
        return None
    dequantize = producers.get(transpose.input[0])
    if dequantize is not None and dequantize.op_type != "DequantizeLinear":
        return None
    name = dequantize.input[0] if dequantize is not None else transpose.input[0]
    weight = constants.get(name)
    if weight is None or weight.data_location != _EXTERNAL:
        return None
    return _Product(matmul, transpose, dequantize, weight)


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The parts one after the other: a view where they lie so in their file."""
    maps = [part for part in parts if isinstance(part, np.memmap)]
    if len(maps) == len(parts) and all(
        one.filename == after.filename and one.offset + one.nbytes == after.offset
        for one, after in itertools.pairwise(maps)
    ):
        file, length = maps[0].filename, sum(map(len, maps))
        assert file is not None  # `_map` opens them by name
        whole: NDArray[np.uint8] = np.memmap(file, np.uint8, "r", maps[0].offset, (length,))
        return whole
    return np.concatenate([np.asarray(part) for part in parts])


def _merged_nodes(name: str, group: list[_Product]) -> list[onnx.NodeProto]:
    first = group[0]
    source, nodes = f"{name}.weight", []
    if first.dequantize is not None:
        dequantize = onnx.NodeProto()
        dequantize.CopyFrom(first.dequantize)
        dequantize.name = f"{name}.DequantizeLinear"
        dequantize.input[0], dequantize.output[0] = source, dequantize.name
        source = dequantize.name
        nodes.append(dequantize)
    turned, product, parts = f"{name}.Transpose", f"{name}.MatMul", f"{name}.Reshape"
    nodes += [
        helper.make_node("Transpose", [source], [turned], turned, perm=[1, 0]),
        helper.make_node("MatMul", [first.matmul.input[0], turned], [product], product),
        helper.make_node("Reshape", [product, f"{name}.parts"], [parts], parts),
    ]
    split = [f"{parts}.{index}" for index in range(len(group))]
    nodes.append(
        helper.make_node("Split", [parts, f"{name}.sizes"], split, f"{name}.Split", axis=2)
    )
    for one, output in zip(split, group, strict=True):
        nodes.append(
            helper.make_node(
                "Reshape", [one, f"{name}.flat"], [output.matmul.output[0]], f"{one}.Reshape"
            )
        )
    return nodes


def _scale_queries_in_fp32(graph: onnx.GraphProto) -> None:
    """Multiply every attention's query by its scale in fp32, and give the attention the scale 1.

    TensorRT's importer multiplies q and k by sqrt(scale) in the compute dtype. As BF16 constants
    sqrt(1/sqrt(128)) and 1/sqrt(128) are off by 1e-4 and more; the scaled query is rounded once.
    """
    caches = [one for one in graph.input if one.name.startswith(contract.PAST)]
    nodes = []
    for node in graph.node:
        if node.op_type == "Attention":
            scale = next((one for one in node.attribute if one.name == "scale"), None)
            if scale is None:
                raise BundleError(f"{node.name} must state its scale. Export the bundle again.")
            compute = caches[0].type.tensor_type.elem_type
            name, query = f"{node.name}.query_scale", node.input[0]
            graph.initializer.append(numpy_helper.from_array(np.array(scale.f, np.float32), name))
            wide, scaled, rounded = f"{name}.fp32", f"{name}.Mul", f"{name}.Cast"
            nodes += [
                helper.make_node("Cast", [query], [wide], wide, to=TensorProto.FLOAT),
                helper.make_node("Mul", [wide, name], [scaled], scaled),
                helper.make_node("Cast", [scaled], [rounded], rounded, to=compute),
            ]
            node.input[0], scale.f = rounded, 1.0
        nodes.append(node)
    replace(graph.node, nodes)
