"""Times work on a device; measures what the device can do at most."""

import statistics
import time
from collections.abc import Callable

import torch

from on_gpu.scale import Scale


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(action: Callable[[], object], scale: Scale, *, inner: int = 1) -> float:
    """Median seconds of one call: a warm-up, then `rounds` rounds of `inner` calls."""
    action()
    times = []
    for _ in range(scale.rounds):
        synchronise(scale.device)
        start = time.perf_counter()
        for _ in range(inner):
            action()
        synchronise(scale.device)
        times.append((time.perf_counter() - start) / inner)
    return statistics.median(times)


def copy_bytes_per_s(scale: Scale) -> float:
    """Bytes read plus bytes written a second by a large copy within the device's memory."""
    source = torch.zeros(scale.copy_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    return 2 * scale.copy_bytes / seconds(lambda: target.copy_(source), scale, inner=4)


def matmul_flops(scale: Scale) -> float:
    """Operations a second of a large square BF16 product."""
    size = scale.matmul_size
    left = torch.randn(size, size, device=scale.device).bfloat16()
    right = torch.randn(size, size, device=scale.device).bfloat16()
    return 2 * size**3 / seconds(lambda: left @ right.t(), scale, inner=4)
