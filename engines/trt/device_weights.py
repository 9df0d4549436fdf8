"""The weights of a stripped plan on the device."""

import numpy as np

from nemo_trt.engines.device import Device

from .outputs import aligned
from .runtime import Context
from .stripped import Weights


class DeviceWeights:
    """Memory for weights, which contexts read. Of no weights, none.

    They are read and copied one by one: of the host's memory, only merged weights that lie apart in
    their file take some.

    Raises:
        BundleError: a weight cannot be read.
        MachineError: the device has not enough memory.
    """

    def __init__(self, device: Device, weights: Weights) -> None:
        self._device, self._addresses = device, dict[str, int]()
        self._first: int | None = None
        if not weights:
            return
        self._first = at = device.allocate(weight_bytes(weights))
        try:
            for name, weight in weights.items():
                device.upload(at, np.ascontiguousarray(weight.read()))
                self._addresses[name] = at
                at += aligned(weight.nbytes)
        except BaseException:
            self.close()
            raise

    def bind(self, context: Context) -> None:
        """Let a context read them."""
        for name, address in self._addresses.items():
            context.set_address(name, address)

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._addresses.clear()
        if self._first is not None:
            self._device.free(self._first)
            self._first = None


def weight_bytes(weights: Weights) -> int:
    """Device memory for weights."""
    return sum(aligned(weight.nbytes) for weight in weights.values())
