"""The kernels as Triton's interpreter runs them, on a CPU: tests/conftest.py asks for that."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def launch() -> ModuleType:
    """The launchers, on kernels that the interpreter runs."""
    module = importlib.import_module("nemo_trt.engines.trt.attention.launch")
    multiply_bf16_as_numbers()
    round_to_e4m3_as_ieee()
    return module


def multiply_bf16_as_numbers() -> None:
    """Triton 3.9's interpreter keeps BF16 as uint16, and multiplies matrices of it as integers.

    Its operands are widened here: products of BF16 numbers are exact in fp32, on tensor cores too.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    if hasattr(interpreter.InterpreterBuilder, "before_bf16"):
        return
    plain = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), d, *rest)

    interpreter.InterpreterBuilder.before_bf16 = plain
    interpreter.InterpreterBuilder.create_dot = create_dot


def round_to_e4m3_as_ieee() -> None:
    """Triton 3.9's interpreter rounds to E4M3 without carry, ties away from zero, and knows no NaN.

    ml_dtypes rounds here. What a GPU's own instruction does is in `benchmarks/gpu.py attention`.
    """
    import ml_dtypes
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter._convert_float
    if plain.__name__ == "convert_float":
        return

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source != tl.float32 or target != tl.float8e4nv:
            return plain(data, source, target, rounding)
        return data.view(np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    interpreter._convert_float = convert_float
