"""Makes prefill attention read keys and values by group of query heads, not expanded to all.

TensorRT expands keys and values to every query head, in scratch memory, only where attention reads
what is an input and output of the network. So a prefill step reads keys and values followed by one
of their own rows, which the mask hides. In a decode step that row folds away: the fused kernel
reads the cache itself.
"""

from typing import Any

import numpy as np

from nemo_trt.errors import BuildError

_TOKENS = 2  # the axis of (B, K, T, D), and of a query, (B, H, S, D)
_ONE = np.ones(1, np.int64)  # TensorRT keeps a constant's address, not its value


def read_by_group(api: Any, network: Any, attention: Any) -> None:
    """Lengthen an attention's keys and values by min(S - 1, 1) tokens."""
    one = network.add_constant((1,), api.Weights(_ONE)).get_output(0)
    operations = api.ElementWiseOperation

    def part(shape: Any, first: int, count: int) -> Any:
        return network.add_slice(shape, (first,), (count,), (1,)).get_output(0)

    query = network.add_shape(attention.get_input(0)).get_output(0)
    fewer = network.add_elementwise(part(query, _TOKENS, 1), one, operations.SUB).get_output(0)
    extra = network.add_elementwise(fewer, one, operations.MIN).get_output(0)
    for index in (1, 2):
        cache = attention.get_input(index)
        shape = network.add_shape(cache).get_output(0)
        size = network.add_concatenation([part(shape, 0, 2), extra, part(shape, 3, 1)])
        size.axis = 0
        row = network.add_slice(cache, (0, 0, 0, 0), (1, 1, 1, 1), (1, 1, 1, 1))
        row.set_input(2, size.get_output(0))
        longer = network.add_concatenation([cache, row.get_output(0)])
        longer.axis = _TOKENS
        attention.set_input(index, longer.get_output(0))


def cache_read(api: Any, tensor: Any, producers: dict[str, Any]) -> str:
    """The name of the cache that an attention reads through what `read_by_group` put before it.

    Args:
        tensor: the attention's keys or values.
        producers: of every tensor by name.

    Raises:
        BuildError: it reads something else.
    """
    longer = producers.get(tensor.name)
    if longer is None or longer.type != api.LayerType.CONCATENATION or longer.num_inputs != 2:
        raise BuildError(f"Attention must read a cache and one row of it, got {tensor.name}.")
    longer.__class__ = api.IConcatenationLayer  # the binding does not downcast it
    cache, rows = longer.get_input(0), producers.get(longer.get_input(1).name)
    if (
        longer.axis != _TOKENS
        or rows is None
        or rows.type != api.LayerType.SLICE
        or rows.get_input(0).name != cache.name
    ):
        raise BuildError(f"Attention must read {cache.name} and one row of it, got something else.")
    return str(cache.name)
