"""The CUDA steps: when they are skipped, and that they run on CUDA and nowhere else.

No GPU is needed: ONNX Runtime's CPU session stands behind the seam.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.acceptance.markdown import _benches
from nemo_trt.acceptance.work import bench, here, validate
from nemo_trt.acceptance.work.done import CannotHere
from nemo_trt.bundle import Bundle
from nemo_trt.engines import measure as measuring
from nemo_trt.engines.cuda import provider
from nemo_trt.engines.machine import Gpu
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.targets import target_named
from nemo_trt.progress import Silent
from nemo_trt.validate import bundle_validation
from nemo_trt.where import Where

pytestmark = pytest.mark.model

H100 = Gpu(name="NVIDIA H100 80GB HBM3", sm=90, memory="81559 MiB", driver="580.1")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says that it has an H100 and all that it needs."""
    monkeypatch.setattr(provider.ort, "get_available_providers", lambda: [provider.CUDA])
    monkeypatch.setattr(here, "gpus", lambda: (H100,))
    monkeypatch.setattr(measuring, "gpus", lambda: (H100,))
    monkeypatch.setattr(here, "require_packages", lambda extra, *names: None)


def test_without_the_provider_it_is_skipped_with_the_command_that_helps(
    tiny: Any, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(CannotHere, match=r"CUDA provider, got .*pip install 'nemo-trt\[gpu\]'"):
        here.require_cuda_session(Bundle.open(tiny.bundle), "h100")


def test_without_a_gpu_of_the_kind_it_is_skipped(
    tiny: Any, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        here.require_cuda_session(Bundle.open(tiny.bundle), "h200") == H100.name
    )  # both are sm_90
    with pytest.raises(CannotHere, match=r"sm_89 GPU like l40s \(here: NVIDIA H100 .*, sm_90\)"):
        here.require_cuda_session(Bundle.open(tiny.bundle), "l40s")
    monkeypatch.setattr(here, "gpus", lambda: ())
    with pytest.raises(CannotHere, match=r"sm_90 GPU like h100 \(here: none\)"):
        here.require_cuda_session(Bundle.open(tiny.bundle), "h100")


def test_weights_that_the_gpu_cannot_hold_are_skipped_with_both_numbers(
    tiny: Any, cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SimpleNamespace(name="h100", sm=90, memory_gb=0, memory_bytes=10**5)
    monkeypatch.setattr(here, "target_named", lambda name: small)
    with pytest.raises(CannotHere, match=r"needs .* GB for the weights in fp32, and h100 has 0 GB"):
        here.require_cuda_session(Bundle.open(tiny.bundle), "h100")


@pytest.fixture
def opened(cuda: None, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What CUDA sessions were asked for."""
    asked: list[dict[str, Any]] = []

    def open_session(bundle: Bundle, where: Where, **size: Any) -> OrtSession:
        asked.append({"where": str(where), **size})
        return OrtSession.open(bundle, **size)

    for module in (measuring, bundle_validation):
        monkeypatch.setattr(module, "open_session", open_session)
    return asked


def benched(tiny: Any, gpu: str) -> dict[str, Any]:
    """The facts of an acceptance for a target."""
    done = bench.run(
        bundle=str(tiny.bundle),
        engine=None,
        cuda_gpu=gpu,
        prefill=[8, 10**6],
        decode=[16],
        decode_steps=4,
        threads=None,
        progress=Silent(),
    )
    return dict(done.facts)


def test_speed_is_measured_on_cuda_beside_the_data_sheets_lower_bound(
    tiny: Any, opened: list[dict[str, Any]]
) -> None:
    facts = benched(tiny, "h100")
    size = {"max_batch": 4, "max_seq_len": 20, "threads": None}  # no more than used
    assert opened == [{"where": "cuda", **size}]
    target = target_named("h100")
    assert facts["gpu"] == H100.name and "data sheet of h100" in facts["bandwidth_source"]
    assert facts["bandwidth_bytes_per_s"] == target.bandwidth_gb_s * 10**9
    assert [one["tokens"] for one in facts["prefill"]] == [8]
    assert [one["rows"] for one in facts["decode"]] == [1, 2, 4]
    config = OrtSession.open(tiny.bundle, threads=1).config
    for one in facts["decode"]:
        token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
        read = 4 * config.num_parameters_per_step + one["rows"] * 16 * token
        assert one["floor_s"] == pytest.approx(read / facts["bandwidth_bytes_per_s"])


def test_the_bandwidth_is_that_of_the_gpu_that_is_here_and_not_of_the_target(
    tiny: Any, opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = benched(tiny, "h200")  # of the same compute capability, with other memory
    assert "data sheet of h100" in facts["bandwidth_source"]
    assert facts["bandwidth_bytes_per_s"] == target_named("h100").bandwidth_gb_s * 10**9
    other = replace(H100, name="NVIDIA H100 PCIe")  # has slower memory, and is not in the table
    monkeypatch.setattr(measuring, "gpus", lambda: (other,))
    facts = benched(tiny, "h100")
    assert facts["bandwidth_bytes_per_s"] is None and "unknown" in facts["bandwidth_source"]
    (row, *_) = [one for one in facts["decode"] if one["rows"] == 1]
    assert row["floor_s"] is None
    step = {"stage": "bench", "verdict": "pass", "subject": "cuda", "machine": "it", "facts": facts}
    text = "\n".join(_benches([step]))
    assert "over the memory's bandwidth (unknown: " in text
    assert re.search(r"^\| decode \| 16 \| 1 \| [\d.,]+ ms \| [\d.,]+ \|  \|  \|$", text, re.M)


def test_validation_is_of_cuda_and_leaves_the_cpus_verdict_alone(
    tiny: Any, opened: list[dict[str, Any]], tmp_path: Path
) -> None:
    bundle, copy = tmp_path / "bundle", tmp_path / "validation" / "validate-fp32-cuda.json"
    shutil.copytree(tiny.bundle, bundle)
    (bundle / "validation.json").unlink(missing_ok=True)
    done = validate.run(
        bundle=str(bundle),
        reference=str(tiny.checkpoint),
        engine=None,
        cuda_gpu="h100",
        max_seq_len=64,
        threads=None,
        copy=str(copy),
        progress=Silent(),
    )
    (asked,) = opened
    assert asked["where"] == "cuda" and asked["max_seq_len"] == 64
    assert done.verdict == "pass" and done.facts["gpu"] == H100.name
    assert json.loads((bundle / "validation-cuda.json").read_text())["verdict"] == "pass"
    assert not (bundle / "validation.json").exists()
    assert json.loads(copy.read_text())["bundle_id"]
