"""What `--repro` writes: Polygraphy, which is not ours, runs it and judges as we did."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.errors import ExportError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.precision import DType
from nemo_trt.validate.explain.repro import INPUTS, MODEL, REFERENCE, SCRIPT, STORED_MODEL

from . import faults
from .test_explain import explained

pytestmark = pytest.mark.e2e


def polygraphy(folder: Path) -> str:
    """PASSED or FAILED: what Polygraphy says of the folder's script's command."""
    words = (folder / SCRIPT).read_text(encoding="utf-8").splitlines()[-1].split()
    assert words[:2] == ["exec", "polygraphy"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from polygraphy.tools import main; sys.exit(main())",
            *words[2:],
        ],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    (verdict,) = re.findall(r"\[.\] (PASSED|FAILED) \| Runtime", done.stdout + done.stderr)
    assert done.returncode == (0 if verdict == "PASSED" else 1)
    return str(verdict)


@pytest.fixture(scope="module")
def bf16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in BF16, whose values Polygraphy's files cannot hold."""
    folder = tmp_path_factory.mktemp("bf16") / "bundle"
    export_bundle(tiny_checkpoint, folder, precision=DType.BF16)
    return folder


def test_polygraphy_fails_a_faulty_place_and_passes_it_without_the_fault(
    tiny_checkpoint: Path, bf16: Path, tmp_path: Path
) -> None:
    scaled = faults.copy_with(bf16, tmp_path / "faulty", faults.kv_heads_rolled)
    faulty = explained(tiny_checkpoint, scaled, tokens=20)
    faulty.worst.write(tmp_path / "repro", Bundle.open(scaled))
    assert polygraphy(tmp_path / "repro") == "FAILED"
    sound = explained(tiny_checkpoint, bf16, tokens=20)
    sound.worst.write(tmp_path / "sound", Bundle.open(bf16))
    assert polygraphy(tmp_path / "sound") == "PASSED"
    with pytest.raises(ExportError, match="must not exist yet"):
        sound.worst.write(tmp_path / "sound", Bundle.open(bf16))


def test_the_stored_model_is_in_the_bundles_types_with_fp32_ends(
    tiny_checkpoint: Path, bf16: Path, tmp_path: Path
) -> None:
    faulty = faults.copy_with(bf16, tmp_path / "faulty", weights=faults.one_tensor_zeroed)
    result = explained(tiny_checkpoint, faulty, tokens=20)
    result.worst.write(tmp_path / "repro", Bundle.open(faulty))
    stored = onnx.load(tmp_path / "repro" / STORED_MODEL)
    onnx.checker.check_model(tmp_path / "repro" / STORED_MODEL, full_check=True)
    (weight,) = (i for i in stored.graph.initializer if i.name.endswith("v_proj.weight"))
    assert weight.data_type == TensorProto.BFLOAT16 and not any(weight.raw_data)
    ends = [*stored.graph.input, *stored.graph.output]
    assert {one.type.tensor_type.elem_type for one in ends} == {TensorProto.FLOAT}
    lowered = onnx.load(tmp_path / "repro" / MODEL)
    assert {i.data_type for i in lowered.graph.initializer} == {TensorProto.FLOAT}


def test_polygraphys_own_readers_read_inputs_and_results(
    tiny_checkpoint: Path, bf16: Path, tmp_path: Path
) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    faulty = faults.copy_with(bf16, tmp_path / "faulty", weights=faults.one_tensor_zeroed)
    result = explained(tiny_checkpoint, faulty, tokens=20)
    result.worst.write(tmp_path / "repro", Bundle.open(faulty))
    (feeds,) = load_json(str(tmp_path / "repro" / INPUTS))
    assert [a.shape[:2] for a in feeds.values()] == [(1, 20)]
    expected = RunResults.load(str(tmp_path / "repro" / REFERENCE))
    (values,) = (dict(run[0]) for _, run in expected.items())
    assert np.linalg.norm(values["model.layers.1.self_attn.v_proj.MatMul"]) > 0.1


def test_repro_is_refused_before_the_work_without_explain_or_onto_a_folder(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(tiny.bundle), "--repro", str(tmp_path / "new")]) == 2
    assert "give both" in capsys.readouterr().err
    assert run(["validate", str(tiny.bundle), "--explain", "--repro", str(tmp_path)]) == 2
    assert "must be a new folder" in capsys.readouterr().err
