"""What stands before tokens far out: keys and values of a short text, again and again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nemo_trt import bfloat16

Block = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Context:
    """Keys and values of a short text, from which those of a long context are made.

    Attributes:
        blocks: (layer, "key" or "value") -> (K, n, D) float32, keys rotated to 0 to n - 1.
        rope_theta: with which they were rotated.
    """

    blocks: Mapping[tuple[int, str], Block]
    rope_theta: float
    _last: dict[str, tuple[int, Block]] = field(default_factory=dict, init=False, repr=False)

    def repeated(self, layer: int, kind: str, length: int) -> Block:
        """(K, length, D): the text again and again, its keys turned to where they now stand.

        Real keys and values keep the model where it is stable; random ones would make it amplify
        rounding, and the case would say more of the model than of the engine. Exact in BF16. The
        longest of the layer that was asked for last is remembered: ask for the longest first.
        """
        if kind in self._last:
            held, block = self._last[kind]
            if held == layer and block.shape[1] >= length:
                return block[:, :length]
        made = self._made(layer, kind, length)
        self._last[kind] = layer, made
        return made

    def _made(self, layer: int, kind: str, length: int) -> Block:
        block = self.blocks[layer, kind]
        heads, tokens, width = block.shape
        copies = -(-length // tokens)
        if kind == "value":
            rounded = bfloat16.to_float32(bfloat16.from_float32(block))
            return np.tile(rounded, (1, copies, 1))[:, :length]
        shifts = np.arange(copies) * tokens
        frequencies = self.rope_theta ** -(np.arange(0, width, 2) / width)
        angles = (shifts[:, None] * frequencies)[:, None]  # (copies, 1, D/2): one a copy
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        first, second = block[:, None, :, : width // 2], block[:, None, :, width // 2 :]
        turned = (first * cos - second * sin, second * cos + first * sin)
        whole = np.concatenate(turned, axis=-1).reshape(heads, -1, width)[:, :length]
        return bfloat16.to_float32(bfloat16.from_float32(whole))
