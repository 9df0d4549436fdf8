"""The inputs of an engine's steps on the device, all but the cache."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_trt import contract
from nemo_trt.engines.device import Device
from nemo_trt.engines.session import Logits, Tokens
from nemo_trt.passes.add_candidates import TEMPERATURES

from .attention.place import LENGTHS
from .engine_record import BuildOptions
from .runtime import Context


class Inputs:
    """Memory for inputs. Addresses never change, so a graph may hold them.

    It is not pinned: a copy of pinned memory may still run when the next chunk overwrites it.

    Raises:
        MachineError: the device has not enough memory.
    """

    def __init__(self, device: Device, sizes: Mapping[str, int]) -> None:
        self._device, self._addresses, self._closing = device, dict[str, int](), ExitStack()
        try:
            for name, num_bytes in sizes.items():
                self._addresses[name] = device.allocate(num_bytes)
                self._closing.callback(device.free, self._addresses[name])
        except BaseException:
            self.close()
            raise

    def bind(self, context: Context) -> None:
        """Let a context read them."""
        for name, address in self._addresses.items():
            context.set_address(name, address)

    def upload(
        self,
        input_ids: Tokens,
        write_indices: Tokens,
        logit_indices: Tokens,
        lengths: NDArray[np.integer[Any]],
        temperatures: Logits,
    ) -> None:
        """Put a run's inputs on the device, behind what is on the stream."""
        for name, values, dtype in (
            (contract.INPUT_IDS, input_ids, np.int64),
            (contract.WRITE_INDICES, write_indices, np.int64),
            (contract.LOGIT_INDICES, logit_indices, np.int64),
            (LENGTHS, lengths, np.int32),
            (TEMPERATURES, temperatures, np.float32),
        ):
            array: NDArray[Any] = np.ascontiguousarray(values, dtype)
            self._device.upload(self._addresses[name], array)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()


def input_bytes(options: BuildOptions) -> dict[str, int]:
    """Bytes of each input, of the largest step."""
    rows = options.max_batch
    return {
        contract.INPUT_IDS: 8 * max(options.prefill_chunk, rows),
        contract.WRITE_INDICES: 8 * rows,
        contract.LOGIT_INDICES: 8 * max(options.max_logits, rows),
        LENGTHS: 4 * rows,
        TEMPERATURES: 4 * rows,
    }
