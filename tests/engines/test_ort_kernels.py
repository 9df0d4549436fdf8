"""ONNX Runtime's CPU kernels of the decoder's operators, against the same formulas in float64.

Constants of the graph are one thing, a kernel's own arithmetic another: a scale, an epsilon or a
mask of its own would show here. docs/contract.md states the errors.
"""

import math

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

pytestmark = pytest.mark.model

LIMIT = 2e-6  # relative L2: fp32's 2^-24 over sums of hundreds
RNG = np.random.default_rng(0)
Array = NDArray[np.float64]


def ran(op_type: str, inputs: dict[str, NDArray[np.generic]], **attributes: object) -> Array:
    """One operator of opset 24 on the CPU provider; "" is an input that is left out."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    given = {name: array for name, array in inputs.items() if array.size}
    values = [
        helper.make_tensor_value_info(name, kinds[array.dtype], array.shape)
        for name, array in given.items()
    ]
    names = [name if name in given else "" for name in inputs]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString())
    found: Array = session.run(None, given)[0].astype(np.float64)
    return found


def error(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def normal(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def rms_norm_error(epsilon: float, scale: float, /, **fault: object) -> float:
    x, weight = (normal(2, 7, 320) * scale).astype(np.float32), normal(320)
    attributes = {"epsilon": epsilon, "axis": -1} | fault
    found = ran("RMSNormalization", {"x": x, "w": weight}, **attributes)
    wide = x.astype(np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.float32(epsilon)) * weight
    return error(found, exact)


def rotary_error(head_dim: int, **fault: object) -> float:
    x = normal(2, 3, 5, head_dim)
    angles = RNG.uniform(0, 131072, (2, 5, head_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    found = ran("RotaryEmbedding", {"x": x, "cos": cos, "sin": sin}, **fault)
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    c, s = (one.astype(np.float64)[:, None] for one in (cos, sin))
    exact = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
    return error(found, exact)


def attention_error(
    new_tokens: int, head_dim: int, *, lengths_off_by: int = 0, **fault: object
) -> float:
    """Grouped, causal, aligned to the end of each row's valid keys; scores of real spread."""
    rows, heads, kv_heads, capacity = 2, 8, 2, 40
    lengths = np.array([new_tokens, 33], np.int64)
    query = 4 * normal(rows, heads, new_tokens, head_dim)
    key, value = (normal(rows, kv_heads, capacity, head_dim) for _ in range(2))
    scale = float(np.float32(1 / math.sqrt(head_dim)))
    none = np.empty(0, np.float32)
    inputs = {"q": query, "k": key, "v": value, "m": none, "a": none, "b": none}
    inputs["n"] = lengths + lengths_off_by
    found = ran("Attention", inputs, **({"is_causal": 1, "scale": scale} | fault))
    groups = heads // kv_heads
    wide_key, wide_value = (one.astype(np.float64).repeat(groups, 1) for one in (key, value))
    scores = scale * query.astype(np.float64) @ wide_key.swapaxes(-1, -2)
    first = (lengths - new_tokens)[:, None, None, None]
    seen = np.arange(capacity) <= first + np.arange(new_tokens)[:, None]
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ wide_value
    return error(found, exact)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_rms_norm(epsilon: float, scale: float) -> None:
    assert rms_norm_error(epsilon, scale) < LIMIT


@pytest.mark.parametrize("head_dim", [64, 112, 128])
def test_rotary_embedding(head_dim: int) -> None:
    assert rotary_error(head_dim) < LIMIT


@pytest.mark.parametrize("head_dim", [64, 112, 128])
@pytest.mark.parametrize("new_tokens", [1, 9])
def test_attention(new_tokens: int, head_dim: int) -> None:
    assert attention_error(new_tokens, head_dim) < LIMIT


def test_a_kernel_of_other_constants_is_found() -> None:
    """Faults as small as a rounded constant, planted in the operator's own attributes."""
    assert rms_norm_error(1e-6, 1e-3, epsilon=1.001e-6) > LIMIT
    assert rms_norm_error(1e-6, 1.0, epsilon=1e-5) > LIMIT
    assert rotary_error(128, interleaved=1) > LIMIT
    assert attention_error(9, 128, scale=0.0884) > LIMIT
    assert attention_error(9, 112, scale=0.0945) > LIMIT
    assert attention_error(9, 64, lengths_off_by=1) > LIMIT
    assert attention_error(9, 64, is_causal=0) > LIMIT
    assert attention_error(9, 64, softcap=50.0) > LIMIT


@pytest.mark.parametrize("operator", ["Cos", "Sin"])
def test_cosines_far_out(operator: str) -> None:
    """Angles of the longest context: a kernel that reduces them badly errs by whole radians."""
    angles = RNG.uniform(0, 131072, 4096).astype(np.float32)
    exact = getattr(np, operator.lower())(angles.astype(np.float64))
    assert np.abs(ran(operator, {"x": angles}) - exact).max() < 2e-7


def test_sigmoid_and_matmul() -> None:
    x, weight = 6 * normal(3, 300), normal(300, 200)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert error(ran("Sigmoid", {"x": x}), exact) < LIMIT
    found = ran("MatMul", {"x": x, "w": weight})
    assert error(found, x.astype(np.float64) @ weight.astype(np.float64)) < LIMIT
