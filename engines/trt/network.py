"""Parses a lowered graph into a TensorRT network and mends what the parser silently loses.

docs/tensorrt.md lists the traps by number.
"""

from typing import Any

from nemo_trt import contract
from nemo_trt.errors import BuildError

from .attention.place import LENGTHS
from .grouped import cache_read, read_by_group
from .lowering import LoweredGraph
from .toolkit import Log, Toolkit


def parse(toolkit: Toolkit, log: Log, builder: Any, graph: LoweredGraph) -> Any:
    """Parse a lowered graph, its weights fed from where they are mapped.

    `graph.weights` must live until the build has ended.

    Raises:
        BuildError: TensorRT refuses the graph or a weight.
    """
    api = toolkit.api
    flags = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = api.OnnxParser(network, log.logger)
    if not parser.load_model_proto(graph.model):
        raise _refusal(parser, "TensorRT's ONNX parser must accept the graph")
    for name, weight in graph.weights.items():
        if not parser.load_initializer(name, weight.ctypes.data, weight.nbytes):
            raise _refusal(parser, f"TensorRT's ONNX parser must accept the weight {name}")
    if not parser.parse_model_proto():
        raise _refusal(parser, "TensorRT's ONNX parser must accept the graph")
    return network


def _refusal(parser: Any, what: str) -> BuildError:
    said = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    return BuildError(f"{what}, got: {'; '.join(said) or 'no reason'}.")


def mend(toolkit: Toolkit, network: Any, *, num_layers: int, allow_unfused: bool) -> None:
    """Give every attention its lengths and its mask's corner back, and check what can be checked.

    Raises:
        BuildError: the network is not what the bundle's graph means.
    """
    layers, attentions = _restore(toolkit, network, allow_unfused=allow_unfused)
    for attention in attentions:
        read_by_group(toolkit.api, network, attention)
    _require_counts(toolkit.api, network, layers, attentions, num_layers)
    _require_fp8(toolkit.api, layers)


def require_paged(toolkit: Toolkit, network: Any, num_layers: int) -> None:
    """Check a network with the attention plugin: TensorRT read every node as it was written.

    Raises:
        BuildError: it did not.
    """
    api = toolkit.api
    layers = _layers(network)
    plugins = sum(layer.type == api.LayerType.PLUGIN_V3 for layer in layers)
    if plugins != num_layers:
        raise BuildError(f"The network must have {num_layers} attentions of ours, got {plugins}.")
    _require_fp8(api, layers)


def mend_piece(toolkit: Toolkit, network: Any, *, allow_unfused: bool) -> None:
    """`mend` a network that holds any part of a graph, for one row.

    Raises:
        BuildError: the network is not what the graph means.
    """
    layers, _ = _restore(toolkit, network, allow_unfused=allow_unfused, rows=1)
    _require_fp8(toolkit.api, layers)


def multiply_as_stored(toolkit: Toolkit, network: Any) -> None:
    """Let products turn the weights that they read themselves; of an input, TensorRT would turn a
    copy in every step."""
    api = toolkit.api
    layers = _layers(network)
    producers = _producers(layers)
    for layer in layers:
        if layer.type != api.LayerType.MATRIX_MULTIPLY:
            continue
        layer.__class__ = api.IMatrixMultiplyLayer
        stored = _before_transpose(api, layer.get_input(1), producers)
        if stored is None:
            continue
        rows = network.add_shuffle(stored)  # the other operand has a batch, so ONNX gives it one
        rows.reshape_dims = (1, *stored.shape)
        layer.set_input(1, rows.get_output(0))
        layer.op1 = api.MatrixOperation.TRANSPOSE


def _before_transpose(api: Any, tensor: Any, producers: dict[str, Any]) -> Any:
    """The matrix whose transpose is a product's operand; None if that is something else."""
    layer = producers.get(tensor.name)
    for order in ((0, 1), (1, 0)):  # ONNX's batch is put before what its Transpose made
        if layer is None or layer.type != api.LayerType.SHUFFLE:
            return None
        layer.__class__ = api.IShuffleLayer
        if tuple(layer.first_transpose)[:2] != order:
            return None
        tensor = layer.get_input(0)
        layer = producers.get(tensor.name)
    return tensor if len(tensor.shape) == 2 else None


def _restore(
    toolkit: Toolkit, network: Any, *, allow_unfused: bool, rows: int = -1
) -> tuple[list[Any], list[Any]]:
    """Give every attention its lengths and its mask's corner back; return layers and attentions."""
    api = toolkit.api
    layers = _layers(network)
    producers = _producers(layers)
    attentions = []
    for layer in layers:
        if layer.type == api.LayerType.ATTENTION_INPUT:
            layer.__class__ = api.IAttentionInputLayer  # the binding does not downcast it
            attentions.append(layer.attention)
    lengths = network.add_input(LENGTHS, api.int32, (rows,)) if attentions else None
    for attention in attentions:
        attention.causal_kind = api.CausalMaskKind.LOWER_RIGHT
        attention.key_value_lengths = lengths
        attention.decomposable = allow_unfused
        for index in (0, 1):  # trap 2
            source = _without_unit_scale(api, attention.get_input(index), producers)
            attention.set_input(index, source)
    return layers, attentions


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _producers(layers: list[Any]) -> dict[str, Any]:
    """Every tensor's name and the layer that makes it."""
    return {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }


def _without_unit_scale(api: Any, tensor: Any, producers: dict[str, Any]) -> Any:
    """What the importer multiplied by sqrt(scale); a product with the whole cache is a copy of it.

    Raises:
        BuildError: the factor is not 1.
    """
    layer = producers.get(tensor.name)
    if layer is None or layer.type != api.LayerType.ELEMENTWISE:
        return tensor
    factor = producers.get(layer.get_input(1).name)
    while factor is not None and factor.type in (
        api.LayerType.CAST,
        api.LayerType.SHUFFLE,
        api.LayerType.UNSQUEEZE,
    ):
        factor = producers.get(factor.get_input(0).name)
    if factor is None or factor.type != api.LayerType.CONSTANT:
        return tensor
    factor.__class__ = api.IConstantLayer
    values = factor.weights.numpy() if hasattr(factor.weights, "numpy") else factor.weights
    if any(float(value) != 1.0 for value in values.reshape(-1)):
        raise BuildError(
            f"Attention must carry scale=1.0, got a factor of {values.reshape(-1)[0]} on "
            f"{layer.get_input(0).name}. Export the bundle again."
        )
    return layer.get_input(0)


def _require_counts(
    api: Any, network: Any, layers: list[Any], attentions: list[Any], num_layers: int
) -> None:
    """Every attention reads lengths and caches, and every cache is updated in place."""
    updates = sum(layer.type == api.LayerType.KV_CACHE_UPDATE for layer in layers)
    if (len(attentions), updates) != (num_layers, 2 * num_layers):
        raise BuildError(
            f"The network must have {num_layers} attentions and {2 * num_layers} cache updates, "
            f"got {len(attentions)} and {updates}. TensorRT reads the graph in another way."
        )
    wrong = [
        attention
        for attention in attentions
        if attention.key_value_lengths is None
        or attention.causal_kind != api.CausalMaskKind.LOWER_RIGHT
    ]
    if wrong:
        raise BuildError("Every attention must have lengths and LOWER_RIGHT; TensorRT lost them.")
    producers = _producers(_layers(network))
    read = [
        tuple(cache_read(api, attention.get_input(index), producers) for index in (1, 2))
        for attention in attentions
    ]
    expected = [(f"present.{index}.key", f"present.{index}.value") for index in range(num_layers)]
    if sorted(read) != sorted(expected):
        odd = sorted(set(read) ^ set(expected))[0]
        raise BuildError(f"Every attention must read its layer's updated caches, got {odd}.")


def _require_fp8(api: Any, layers: list[Any]) -> None:
    """Trap 4: a QuantizeLinear that is read as INT8."""
    for layer in layers:
        if layer.type == api.LayerType.QUANTIZE and layer.get_output(0).dtype != api.fp8:
            raise BuildError(f"{layer.name} must quantise to FP8, got {layer.get_output(0).dtype}.")


def caches(network: Any) -> list[Any]:
    """The network's cache inputs."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return [one for one in inputs if one.name.startswith(contract.PAST)]
