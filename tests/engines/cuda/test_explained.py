"""Pieces of a graph, lowered as for CUDA: a sound one is sound, a fault is named; on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.engines.cuda.provider import CUDA
from nemo_trt.engines.ort_graph import Weight, promote_array, session_options
from nemo_trt.errors import MachineError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.passes.fuse_skips import FuseSkips
from nemo_trt.passes.graph_pass import nodes_of
from nemo_trt.validate.explain.explain import Explanation, explain
from nemo_trt.validate.explain.findings import LIMITS
from nemo_trt.validate.explain.runners import OnCuda, open_runner
from nemo_trt.validate.sequences import TokenSequence
from nemo_trt.where import Where
from tests.engines.promoting import promoted
from tests.validate import faults

from .standin import HostDevice

pytestmark = pytest.mark.model
TEXT = TokenSequence(name="text", tokens=tuple(range(10, 30)))
WITHOUT_CUDA = pytest.mark.skipif(
    CUDA in ort.get_available_providers(), reason="for a machine without onnxruntime-gpu"
)


class Promoted:
    """`Provider` that runs on the CPU, in fp32, what CUDA would run in BF16."""

    memory, name = "cpu", "CPUExecutionProvider"

    def __init__(self) -> None:
        self.stored: set[int] = set()

    def open(self, graph: bytes, weights: list[Weight], stream: int, *, use_graphs: bool) -> Any:
        assert stream == HostDevice.stream and not use_graphs
        model = onnx.load_from_string(graph)
        ends = {one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)}
        assert ends <= {TensorProto.FLOAT, TensorProto.INT64}  # NumPy has no BF16
        self.stored |= {weight.onnx_type for weight in weights}
        wide = [
            Weight(one.name, promote_array(one.array), TensorProto.FLOAT)
            if one.onnx_type == TensorProto.BFLOAT16
            else one
            for one in weights
        ]
        return ort.InferenceSession(
            promoted(model).SerializeToString(), session_options(wide), providers=[self.name]
        )


def explained(bundle: Path, checkpoint: Path, start: int = 0) -> tuple[Explanation, Promoted]:
    opened, provider, device = Bundle.open(bundle), Promoted(), HostDevice()
    runner = OnCuda(opened, provider, device)
    far = TokenSequence(name="far", tokens=TEXT.tokens[:6], start=start) if start else TEXT
    result = explain(opened, open_checkpoint(checkpoint), TEXT, far, runner=runner)
    runner.close()
    assert device.closed
    return result, provider


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_a_sound_bundle_is_sound_as_cuda_lowers_its_pieces(
    precision: str, bundles: dict[str, Path]
) -> None:
    checkpoint = bundles[precision].parent / "checkpoint"
    result, provider = explained(bundles[precision], checkpoint)
    assert result.found == () and "CUDA" in result.runner
    assert result.places[0].limit == LIMITS["fp32" if precision == "fp32" else "bf16"]
    if precision != "fp8":
        assert max(one.position_error for one in result.places) < 1e-5  # the lowering alters none
        assert max(result.free) < 1e-4
        far, _ = explained(bundles[precision], checkpoint, start=300)
        assert far.found == () and max(one.position_error for one in far.places) < 1e-5
    expected = {"fp32": TensorProto.FLOAT}.get(precision, TensorProto.BFLOAT16)
    assert expected in provider.stored  # the weights are the ones that CUDA would be given


def test_a_fault_is_named_as_on_the_cpu(bundles: dict[str, Path], tmp_path: Path) -> None:
    faulty = faults.copy_with(bundles["bf16"], tmp_path / "b", weights=faults.one_tensor_zeroed)
    result, _ = explained(faulty, bundles["bf16"].parent / "checkpoint")
    assert [one.where for one in result.found] == ["layer 1 self_attn.v_proj"]
    result.worst.write(tmp_path / "repro", Bundle.open(faulty))
    assert np.all(result.worst.got == 0) and (tmp_path / "repro" / "onnxrt-cuda.json").is_file()


def test_a_fault_of_what_is_fused_shows_in_the_whole_layer(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum and its norm are one kernel in a layer, and apart where each place is fed alone."""

    def fuse(self: FuseSkips, graph: ir.Graph) -> None:
        change(self, graph)
        for node in nodes_of(graph, "SkipSimplifiedLayerNormalization"):
            node.attributes.add(ir.AttrFloat32("epsilon", 1e-2))

    change = FuseSkips.change
    monkeypatch.setattr(FuseSkips, "change", fuse)
    result, _ = explained(bundles["fp32"], bundles["fp32"].parent / "checkpoint")
    assert result.found == ()
    assert "layer 0 as a whole" in result.sentences()[0], result.free


@WITHOUT_CUDA
def test_without_the_cuda_provider_the_exit_code_is_3(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MachineError, match="CUDA provider"):
        open_runner(Bundle.open(bundles["bf16"]), Where.of("cuda"))
    assert run(["validate", str(bundles["bf16"]), "--backend", "cuda", "--explain"]) == 3
    assert "ONNX Runtime must have its CUDA provider" in " ".join(capsys.readouterr().err.split())
