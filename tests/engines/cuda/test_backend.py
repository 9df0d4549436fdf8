"""`--backend`: what opens, what is refused, and whose verdict counts."""

import json
from pathlib import Path

import pytest

from nemo_trt.bundle import Bundle
from nemo_trt.cli.main import run
from nemo_trt.engines.open import open_session
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.runner import Runner
from nemo_trt.errors import BuildError, BundleError, MachineError, RequestError
from nemo_trt.manifest import read_manifest
from nemo_trt.precision import DType
from nemo_trt.serve.http.service import require_verdict
from nemo_trt.serve.options import ServeOptions
from nemo_trt.verdict import PASS, read_verdict, verdict_file
from nemo_trt.where import CPU
from nemo_trt.where import CUDA as ON_CUDA

from .standin import HostDevice
from .test_session import open_on_host

pytestmark = pytest.mark.model

CUDA = "CUDAExecutionProvider"


def write_verdict(bundle: Path, file: str, provider: str) -> None:
    engine = {"backend": "onnxruntime", "provider": provider}
    report = {"bundle_id": read_manifest(bundle).bundle_id, "engine": engine, "verdict": "pass"}
    (bundle / file).write_text(json.dumps(report), encoding="utf-8")


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


def test_each_backend_has_a_verdict_of_its_own(bundles: dict[str, Path]) -> None:
    bundle = bundles["bf16"]
    opened = Bundle.open(bundle)
    bundle_id = opened.bundle_id

    def verdicts() -> tuple[str, str]:
        cpu = read_verdict(bundle, bundle_id=bundle_id)
        return cpu, read_verdict(bundle, bundle_id=bundle_id, backend="cuda")

    try:
        write_verdict(bundle, verdict_file(), "CPUExecutionProvider")
        assert verdicts() == (PASS, "none yet: run nemo-trt validate --backend cuda")
        write_verdict(bundle, verdict_file("cuda"), "CPUExecutionProvider")
        assert verdicts() == (PASS, "stale: it is of another backend")
        write_verdict(bundle, verdict_file("cuda"), CUDA)
        assert verdicts() == (PASS, PASS)
        write_verdict(bundle, verdict_file(), CUDA)
        assert verdicts() == ("stale: it is of another backend", PASS)
        assert require_verdict(opened, ON_CUDA, ServeOptions()) == PASS
        with pytest.raises(BundleError, match="another backend"):
            require_verdict(opened, CPU, ServeOptions())
        (bundle / verdict_file("cuda")).unlink()
        with pytest.raises(BundleError, match="validate --backend cuda"):
            require_verdict(opened, ON_CUDA, ServeOptions())
    finally:
        for file in (verdict_file(), verdict_file("cuda")):
            (bundle / file).unlink(missing_ok=True)


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
