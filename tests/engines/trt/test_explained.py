"""Pieces of a graph, lowered and compiled as TensorRT's engine is; ONNX Runtime computes them.

Everything is real but the GPU: TensorRT-RTX compiles each piece's network through Polygraphy. What
the parser was given is computed by ONNX Runtime, on the tensors that Polygraphy would be given.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.engines.ort_graph import Weight, promote_array, session_options
from nemo_trt.engines.planned import CacheKind
from nemo_trt.engines.trt.attention.place import LENGTHS
from nemo_trt.engines.trt.engine_record import BuildOptions
from nemo_trt.engines.trt.piece import PieceNetwork
from nemo_trt.engines.trt.toolkit import load_toolkit
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.passes import merge_products
from nemo_trt.precision import DType
from nemo_trt.validate.explain.explain import Explanation, explain
from nemo_trt.validate.explain.findings import LIMITS
from nemo_trt.validate.explain.runners import OnTensorRt, polygraphy_trt
from nemo_trt.validate.sequences import TokenSequence
from tests.engines.promoting import promoted
from tests.validate import faults

from .standin import record_of

pytestmark = pytest.mark.e2e

pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
TEXT = TokenSequence(name="text", tokens=tuple(range(10, 30)))
OPTIONS = BuildOptions(
    target="l4", sm=89, max_seq_len=64, max_batch=2, prefill_chunk=32, max_logits=8
)
_CODES = {dtype.onnx_code: np.dtype(dtype.numpy_name) for dtype in DType}


class Compiled:
    """In the place of a GPU: checks what would be run, and computes it in fp32."""

    def __init__(self) -> None:
        self.toolkit = load_toolkit("tensorrt-rtx")
        self.plans: list[int] = []
        self.caches: set[str] = set()

    def __call__(self, made: PieceNetwork, tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
        trt = polygraphy_trt(self.toolkit)
        plan = trt.EngineBytesFromNetwork((made.builder, made.network), config=made.config)()
        self.plans.append(plan.nbytes)
        assert not made.log.errors
        self.caches |= {
            one.dtype.name
            for kind in ("input", "output")
            for name, one in self.ends(made, kind)
            if "present." in name or name.startswith(contract.PAST)
        }
        for name, one in self.ends(made, "input"):
            assert tuple(one.shape) == tuple(tensors[name].shape)
            assert str(one.dtype).removeprefix("DataType.").lower() in NAMES[tensors[name].dtype]
        operators = {one.op_type for one in onnx.load_from_string(made.graph.model).graph.node}
        assert (LENGTHS in tensors) == ("Attention" in operators)
        found = computed(made, {n: wide(t) for n, t in tensors.items() if n != LENGTHS})
        types = {name: TYPES[one.dtype.name] for name, one in self.ends(made, "output")}
        return {name: torch.from_numpy(found[name]).to(types[name]) for name in types}

    @staticmethod
    def ends(made: PieceNetwork, kind: str) -> Iterator[tuple[str, Any]]:
        get = getattr(made.network, f"get_{kind}")
        for index in range(getattr(made.network, f"num_{kind}s")):
            yield get(index).name, get(index)


TYPES = {"BF16": torch.bfloat16, "HALF": torch.float16, "FLOAT": torch.float32}
NAMES = {
    torch.bfloat16: {"bf16"},
    torch.float16: {"half"},
    torch.float32: {"float"},
    torch.int64: {"int64"},
    torch.int32: {"int32"},
}


def wide(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def computed(made: PieceNetwork, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the lowered graph of a piece gives on ONNX Runtime's CPU provider, in fp32."""
    model = onnx.load_from_string(made.graph.model)
    stored = {one.name: one for one in model.graph.initializer if one.name in made.graph.weights}
    weights = []
    for name, one in stored.items():
        array = made.graph.weights[name].view(_CODES[one.data_type]).reshape(tuple(one.dims))
        bf16 = one.data_type == TensorProto.BFLOAT16
        code = TensorProto.FLOAT if bf16 else one.data_type
        weights.append(Weight(name, promote_array(array), code))
    session = ort.InferenceSession(
        promoted(model, half=True).SerializeToString(), session_options(weights)
    )
    names = [one.name for one in session.get_outputs()]
    given = {one.name: feeds[one.name] for one in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def explained(
    bundle: Path, checkpoint: Path, kv_cache: CacheKind = "base"
) -> tuple[Explanation, Compiled]:
    opened, compiled = Bundle.open(bundle), Compiled()
    record = record_of(bundle, options=replace(OPTIONS, kv_cache=kv_cache))
    runner = OnTensorRt(opened, record, compiled.toolkit, compiled)
    return explain(opened, open_checkpoint(checkpoint), TEXT, TEXT, runner=runner), compiled


@pytest.mark.parametrize(
    ("precision", "kv_cache"), [("bf16", "base"), ("bf16", "fp16"), ("fp8", "base")]
)
def test_every_piece_compiles_and_a_sound_bundle_is_sound(
    precision: str, kv_cache: CacheKind, small: dict[str, Path]
) -> None:
    result, compiled = explained(small[precision], small["bf16"], kv_cache)
    assert result.found == ()
    assert compiled.caches == {"HALF" if kv_cache == "fp16" else "BF16"}
    limits = {one.place: one.limit for one in result.places}
    assert limits["mlp.up_proj"] == LIMITS[precision] and limits["residual"] == LIMITS["bf16"]
    assert result.runner.startswith("tensorrt-rtx")
    assert len(compiled.plans) == 6  # embedding; two layers, fed and free; head
    noise = max(one.position_error for one in result.places)
    assert noise > 1e-3  # inputs and outputs are rounded to BF16, as an engine's are


def test_a_fault_beyond_bf16s_rounding_is_named(small: dict[str, Path], tmp_path: Path) -> None:
    faulty = faults.copy_with(small["bf16"], tmp_path / "b", weights=faults.one_tensor_zeroed)
    result, _ = explained(faulty, small["bf16"])
    assert [one.where for one in result.found] == ["layer 1 self_attn.v_proj"]
    result.worst.write(tmp_path / "repro", Bundle.open(faulty))
    assert (tmp_path / "repro" / "trt.json").is_file()


def test_a_fault_of_the_lowering_alone_is_named(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is sound; TensorRT is given gate and up merged the wrong way round."""
    joined = merge_products.joined
    monkeypatch.setattr(
        merge_products, "joined", lambda parts: joined(parts[::-1] if len(parts) == 2 else parts)
    )
    result, _ = explained(small["bf16"], small["bf16"])
    wrong = {f"layer {layer} mlp.{name}" for layer in (0, 1) for name in ("gate_proj", "up_proj")}
    assert {one.where for one in result.found} == wrong
    bundle = Bundle.open(small["bf16"])
    on_cpu = explain(bundle, open_checkpoint(small["bf16"]), TEXT, TEXT)
    assert on_cpu.found == ()


def test_an_attention_without_its_lengths_is_seen(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fix-up of the network is the builder's own: without it the piece lacks an input."""
    from nemo_trt.engines.trt import piece

    monkeypatch.setattr(piece, "mend_piece", lambda *_, **__: None)
    with pytest.raises(AssertionError):
        explained(small["bf16"], small["bf16"])


def test_polygraphy_runs_on_the_engines_own_library() -> None:
    toolkit = load_toolkit("tensorrt-rtx")
    trt = polygraphy_trt(toolkit)
    assert trt.TrtRunner.__module__ == "polygraphy.backend.trt.runner"
