"""The GPUs that engines are built for: what each can do, and where the numbers come from."""

import re
from dataclasses import dataclass

from nemo_trt.errors import RequestError
from nemo_trt.precision import DType

RTX_SM = (75, 80, 86, 89, 120, 121)
"""Compute capabilities that TensorRT-RTX compiles for, all of them without a GPU
(`tensorrt_rtx.ComputeCapability` of version 1.7)."""
_FP8_SM = 89  # the first with FP8 tensor cores: Ada; then Hopper and Blackwell


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU by name.

    Attributes:
        sm: compute capability times ten.
        memory_gb: of its own, in decimal gigabytes as its data sheet says.
        bandwidth_gb_s: of that memory.
        source: of memory and bandwidth. Compute capabilities: https://developer.nvidia.com/cuda-gpus
    """

    name: str
    sm: int
    memory_gb: int
    bandwidth_gb_s: int
    source: str

    @property
    def memory_bytes(self) -> int:
        """Bytes of its memory."""
        return self.memory_gb * 10**9

    @property
    def bytes_per_ms(self) -> float:
        """Bytes that its memory reads in a millisecond."""
        return self.bandwidth_gb_s * 1e6

    @property
    def toolkits(self) -> tuple[str, ...]:
        """Libraries that compile for it; "tensorrt" needs the GPU itself."""
        return ("tensorrt", "tensorrt-rtx") if self.sm in RTX_SM else ("tensorrt",)

    @property
    def has_fp8(self) -> bool:
        """Whether its tensor cores multiply FP8."""
        return self.sm >= _FP8_SM

    def supports(self, precision: DType) -> bool:
        """Whether a bundle of this precision can be compiled for it."""
        return precision is not DType.FP8 or self.has_fp8


_SHEET = "https://www.nvidia.com/en-us/"
_TARGETS = (
    Target(
        name="a10",
        sm=86,
        memory_gb=24,
        bandwidth_gb_s=600,
        source=_SHEET + "data-center/products/a10-gpu/",
    ),
    Target(
        name="a100-40gb",
        sm=80,
        memory_gb=40,
        bandwidth_gb_s=1555,
        source=_SHEET + "data-center/a100/",
    ),
    Target(
        name="a100", sm=80, memory_gb=80, bandwidth_gb_s=1935, source=_SHEET + "data-center/a100/"
    ),
    Target(name="l4", sm=89, memory_gb=24, bandwidth_gb_s=300, source=_SHEET + "data-center/l4/"),
    Target(
        name="l40s", sm=89, memory_gb=48, bandwidth_gb_s=864, source=_SHEET + "data-center/l40s/"
    ),
    Target(
        name="rtx4090",
        sm=89,
        memory_gb=24,
        bandwidth_gb_s=1008,
        source=_SHEET + "geforce/graphics-cards/40-series/rtx-4090/",
    ),
    Target(
        name="rtx5090",
        sm=120,
        memory_gb=32,
        bandwidth_gb_s=1792,
        source=_SHEET + "geforce/graphics-cards/50-series/rtx-5090/",
    ),
    Target(
        name="rtx-pro-6000",
        sm=120,
        memory_gb=96,
        bandwidth_gb_s=1792,
        source=_SHEET + "products/workstations/professional-desktop-gpus/rtx-pro-6000/",
    ),
    Target(
        name="h100", sm=90, memory_gb=80, bandwidth_gb_s=3350, source=_SHEET + "data-center/h100/"
    ),
    Target(
        name="h100-nvl",
        sm=90,
        memory_gb=94,
        bandwidth_gb_s=3900,
        source=_SHEET + "data-center/h100/",
    ),
    Target(
        name="h200", sm=90, memory_gb=141, bandwidth_gb_s=4800, source=_SHEET + "data-center/h200/"
    ),
    Target(
        name="gh200",
        sm=90,
        memory_gb=96,
        bandwidth_gb_s=4000,
        source=_SHEET + "data-center/grace-hopper-superchip/",
    ),
    Target(
        name="b200",
        sm=100,
        memory_gb=180,
        bandwidth_gb_s=8000,
        source=_SHEET + "data-center/dgx-b200/",
    ),
    Target(
        name="b300",
        sm=103,
        memory_gb=288,
        bandwidth_gb_s=8000,
        source=_SHEET + "data-center/dgx-b300/",
    ),
)
TARGETS = {target.name: target for target in _TARGETS}
_DRIVER_NAMES = {
    "a100-pcie-40gb": "a100-40gb",
    "a100-sxm4-40gb": "a100-40gb",
    "a100-80gb-pcie": "a100",
    "a100-sxm4-80gb": "a100",
    "b300-sxm6-ac": "b300",
    "gh200-480gb": "gh200",
    "h100-80gb-hbm3": "h100",
    "h200-nvl": "h200",
    "rtx-4090": "rtx4090",
    "rtx-5090": "rtx5090",
    "rtx-pro-6000-blackwell-max-q-workstation-edition": "rtx-pro-6000",
    "rtx-pro-6000-blackwell-server-edition": "rtx-pro-6000",
    "rtx-pro-6000-blackwell-workstation-edition": "rtx-pro-6000",
}
"""What the driver calls a GPU, without its brand, where that is not the target's name. A name that
is not here stays unknown: an H100 PCIe or an RTX 4090 D has other memory than its namesake."""


def target_named(name: str) -> Target:
    """The target of a name, as it is in the table or as nvidia-smi prints it, in any case.

    Raises:
        RequestError: there is none.
    """
    words = [word for word in re.split(r"[\s_-]+", name.lower()) if word]
    plain = "-".join(word for word in words if word not in ("nvidia", "geforce"))
    target = TARGETS.get(_DRIVER_NAMES.get(plain, plain))
    if target is None:
        raise RequestError(f"The GPU must be one of {', '.join(TARGETS)}, got {name}.")
    return target
