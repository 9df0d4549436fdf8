"""What an engine's steps give: logits that stay on the device, and candidates that come at once."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_trt import contract
from nemo_trt.engines.candidates import NUM_CANDIDATES, Candidates
from nemo_trt.engines.device import Device
from nemo_trt.engines.session import Logits
from nemo_trt.engines.step_result import At
from nemo_trt.passes.add_candidates import IDS, MASS, MASS_TEMPERED, VALUES

from .runtime import Context

_ALIGNMENT = 256  # of addresses that TensorRT takes


@dataclass(frozen=True, slots=True)
class Run:
    """A decode run on the stream.

    Attributes:
        bound: position of `Outputs` that it writes from.
        offset: of its rows, those before the first that was asked for.
        asked: rows of the step that it ran.
    """

    bound: int
    offset: int
    asked: slice


class Outputs:
    """Memory for the outputs of so many logit positions.

    A run writes its positions one after the other, from the position that its context is bound to;
    runs of one step are bound so that none overwrites another's. Addresses never change, so a graph
    may hold them.

    Args:
        positions: of one step.
        vocab_size: V.

    Raises:
        MachineError: the device has not enough memory.
    """

    def __init__(self, device: Device, positions: int, vocab_size: int) -> None:
        self._device, self._vocab_size, self.positions = device, vocab_size, positions
        self._logits_bytes, self._closing = 4 * vocab_size, ExitStack()
        count = min(vocab_size, NUM_CANDIDATES)
        self._host: dict[str, NDArray[np.generic]] = {
            IDS: np.zeros((positions, count), np.int32),
            VALUES: np.zeros((positions, count), np.float32),
            MASS: np.zeros(positions, np.float32),
            MASS_TEMPERED: np.zeros(positions, np.float32),
        }
        self._addresses: dict[str, int] = {}
        self._bytes = {contract.LOGITS: self._logits_bytes}
        self._bytes |= {name: array[0].nbytes for name, array in self._host.items()}
        try:
            for name, num_bytes in self._bytes.items():
                self._addresses[name] = device.allocate(positions * aligned(num_bytes))
                self._closing.callback(device.free, self._addresses[name])
        except BaseException:
            self.close()
            raise
        for array in self._host.values():
            device.pin(array)

    @staticmethod
    def num_bytes(positions: int, vocab_size: int) -> int:
        """Device memory for so many positions."""
        row = 4 * min(vocab_size, NUM_CANDIDATES)
        return positions * sum(map(aligned, (4 * vocab_size, row, row, 4, 4)))

    def bind(self, context: Context, position: int) -> None:
        """Let a context write from a position on."""
        for name, num_bytes in self._bytes.items():
            context.set_address(name, self._addresses[name] + position * aligned(num_bytes))

    def logits_address(self, bound: int, offset: int) -> int:
        """Of one position: the one that a run was bound to, and how many lie between."""
        first = self._addresses[contract.LOGITS] + bound * aligned(self._logits_bytes)
        return first + offset * self._logits_bytes

    def start_download(self, bound: int, first: int, stop: int, target: int) -> None:
        """Copy candidates of a run's positions to the host's positions from `target` on."""
        for name, array in self._host.items():
            address = self._addresses[name] + bound * aligned(self._bytes[name])
            part = array[target : target + stop - first]
            self._device.start_download(part, address + first * self._bytes[name])

    def candidates(self, positions: Sequence[int]) -> Candidates:
        """Those of some of the host's positions."""
        some = list(positions)
        return Candidates(
            ids=self._host[IDS][some],  # type: ignore[arg-type]
            logits=self._host[VALUES][some],  # type: ignore[arg-type]
            mass=self._host[MASS][some],  # type: ignore[arg-type]
            mass_tempered=self._host[MASS_TEMPERED][some],  # type: ignore[arg-type]
            vocab_size=self._vocab_size,
        )

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        self._closing.close()


class DeviceResult:
    """A `StepResult` whose candidates are on the host, and whose logits are on the device.

    Args:
        num_logits: N of the step.
        addresses: of the logits of each of the step's B * N positions.
    """

    def __init__(
        self, device: Device, outputs: Outputs, num_logits: int, addresses: Sequence[int]
    ) -> None:
        self._device, self._outputs = device, outputs
        self._num_logits, self._addresses = num_logits, addresses
        self._vocab_size = outputs._vocab_size

    def logits(self, row: int, first: int, last: int) -> Logits:
        """See `StepResult.logits`. Each position is a copy from the device."""
        found = np.empty((last - first, self._vocab_size), np.float32)
        for at in range(first, last):
            address = self._addresses[row * self._num_logits + at]
            self._device.download(found[at - first], address)
        return found

    def candidates(self, at: Sequence[At]) -> Candidates:
        """See `StepResult.candidates`."""
        return self._outputs.candidates([row * self._num_logits + position for row, position in at])


def aligned(num_bytes: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
