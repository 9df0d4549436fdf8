"""`--backend`: what opens, what is refused, and whose verdict counts."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.engines.open import open_session
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.errors import BuildError, BundleError, MachineError, RequestError
from nemo_trt.precision import DType
from nemo_trt.serve.approval import require_verdict
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import read_verdict, verdict_path
from nemo_trt.where import CPU
from nemo_trt.where import CUDA as ON_CUDA

from .standin import HostDevice
from .test_session import open_on_host

pytestmark = pytest.mark.model

CUDA = "CUDAExecutionProvider"


def has_cuda() -> bool:
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def test_the_cpu_is_the_default_and_names_must_exist(bundles: dict[str, Path]) -> None:
    with open_session(bundles["bf16"], max_seq_len=32, threads=1) as session:
        assert isinstance(session, OrtSession)
        assert session.where == CPU
    with pytest.raises(BuildError, match="must have an engine tpu"):
        open_session(bundles["bf16"], "tpu")
    with pytest.raises(RequestError, match="threads"):
        open_session(bundles["bf16"], "cuda", threads=2)
    for options in ({"max_batch": 1}, {"max_seq_len": 64}, {"threads": 2}):
        with pytest.raises(RequestError, match="must be left out"):
            Runner.open(bundles["bf16"], "l4-bf16", **options)


@pytest.mark.skipif(has_cuda(), reason="onnxruntime-gpu is installed here")
@pytest.mark.parametrize("command", [["run", "hello"], ["chat", "-m", "hello"], ["bench"]])
def test_commands_say_what_cuda_needs(
    bundles: dict[str, Path], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = command
    assert run([name, str(bundles["bf16"]), *rest, "--backend", "cuda"]) == 3
    assert "pip install 'nemo-trt[gpu]'" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(MachineError, match="CUDA provider"):
        Runner.open(bundles["bf16"], "cuda")


@pytest.mark.skipif(has_cuda(), reason="onnxruntime-gpu is installed here")
def test_validate_on_cuda_says_what_it_needs_and_writes_no_verdict(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(bundles["bf16"]), "--backend", "cuda"]) == 3
    assert "nemo-trt[gpu]" in capsys.readouterr().err
    assert not (bundles["bf16"] / "validation-cuda.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["validate", "--threads", "2"],
        ["validate", "--engine", "l4-bf16"],
        ["serve", "--threads", "2"],
        ["serve", "--engine", "l4-bf16"],
        ["run", "hello", "--engine", "l4-bf16"],
        ["bench", "--threads", "2"],
    ],
)
def test_what_cuda_does_not_go_with_is_refused(
    bundles: dict[str, Path], options: list[str]
) -> None:
    command, *rest = options
    assert run([command, str(bundles["bf16"]), "--backend", "cuda", *rest]) == 2


def test_cuda_needs_a_verdict_of_its_own_and_the_bundles(
    bundles: dict[str, Path], vouch: Any, tmp_path: Path
) -> None:
    opened = Bundle.open(shutil.copytree(bundles["bf16"], tmp_path / "bundle"))
    own, cuda = (verdict_path(opened, where) for where in (CPU, ON_CUDA))
    vouch(opened.path)
    assert read_verdict(opened).passed
    with pytest.raises(BundleError, match=r"validate \S+ --backend cuda"):
        require_verdict(opened, ON_CUDA, ServeOptions())
    cuda.write_bytes(own.read_bytes())
    assert read_verdict(opened, ON_CUDA).words == "stale: it is of cpu, not of cuda"
    vouch(opened.path, "cuda", compute_precision="bf16")
    assert read_verdict(opened, ON_CUDA).passed
    own.write_bytes(cuda.read_bytes())
    assert read_verdict(opened).words == "stale: it is of cuda, not of cpu"
    # BF16's limits do not see every fault: they count beside the bundle's own verdict alone.
    own.unlink()
    with pytest.raises(BundleError, match=r"own verdict on the CPU is 'none yet"):
        require_verdict(opened, ON_CUDA, ServeOptions())
    vouch(opened.path, "cuda")  # one that computed in fp32 stands for itself
    assert read_verdict(opened, ON_CUDA).passed


def test_the_validator_judges_the_cuda_session_as_it_is_written(bundles: dict[str, Path]) -> None:
    """The whole validator over the lowered graph, on the host and in fp32."""
    from nemo_trt.export.checkpoints import open_checkpoint
    from nemo_trt.validate.sequences import make_sequences
    from nemo_trt.validate.validator import validate

    checkpoint = open_checkpoint(bundles["bf16"].parent / "checkpoint")
    device = HostDevice()
    with open_on_host(bundles["bf16"], device=device, max_seq_len=128, base=DType.FP32) as session:
        report = validate(
            session,
            checkpoint,
            make_sequences(session, None),
            bundle_id="",
            engine=session.describe(),
        )
    assert report.verdict == "pass", report.failures
    assert report.engine["compute_precision"] == "fp32"
