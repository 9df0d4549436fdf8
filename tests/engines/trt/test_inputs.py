"""The memory of a step's inputs holds what any profile of the engine takes."""

from math import prod

import pytest

from nemo_trt import contract
from nemo_trt.engines.trt.engine_record import BuildOptions
from nemo_trt.engines.trt.inputs import input_bytes
from nemo_trt.engines.trt.profiles import PREFILL, decode_names, profile_named

pytestmark = pytest.mark.unit
INT64 = (contract.INPUT_IDS, contract.WRITE_INDICES, contract.LOGIT_INDICES)


@pytest.mark.parametrize(("rows", "chunk", "logits"), [(1, 64, 16), (32, 8, 8), (6, 64, 2)])
def test_every_profiles_largest_shape_fits(rows: int, chunk: int, logits: int) -> None:
    options = BuildOptions(
        target="l4", sm=89, max_seq_len=64, max_batch=rows, prefill_chunk=chunk, max_logits=logits
    )
    memory = input_bytes(options)
    needed = dict.fromkeys(memory, 0)
    for name in (PREFILL, *decode_names(rows)):
        for value, shape in profile_named(name, options).most.items():
            itemsize = 8 if value in INT64 else 4
            needed[value] = max(needed[value], prod(shape) * itemsize)
    assert memory == needed
