"""`plan`, `build` and what other commands make of an engine, as a user runs them without a GPU."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.cli.main import run
from nemo_trt.engines import machine

pytestmark = pytest.mark.model

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(cached: Any) -> Path:
    """A small bundle whose attention TensorRT fuses."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle
        from nemo_trt.export.samples import SHAPES, write_seeded

        config = replace(
            SHAPES["nemo-12b"],
            num_layers=2,
            hidden_size=320,
            intermediate_size=896,
            num_heads=8,
            num_kv_heads=2,
            head_dim=128,
            vocab_size=512,
        )
        write_seeded(folder / "checkpoint", config)
        export_bundle(folder / "checkpoint", folder / "bundle")

    return Path(cached("cli-engines", make) / "bundle")


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> str:
    shutil.copytree(exported, tmp_path / "bundle")
    return str(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on machines with one."""
    from nemo_trt.engines.trt import toolkit

    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(toolkit, "gpus", list)


def words(text: str) -> str:
    return " ".join(text.split())


def test_plan_shows_every_gpu_then_one(bundle: str, capsys: Output) -> None:
    assert run(["plan", bundle]) == 0
    shown = capsys.readouterr().out
    assert "h100" in shown and "131,072" in shown
    assert run(["plan", bundle, "--max-batch", "2000"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["l4"]]
    assert run(["plan", bundle, "--gpu", "l4", "--max-batch", "2000", "--json"]) == 0
    longest = json.loads(capsys.readouterr().out)["fits"]["2000"]
    assert 0 < longest < 131072 and f"{longest:,}" in row
    assert run(["plan", bundle, "--gpu", "l40s", "--max-batch", "4"]) == 0
    shown = words(capsys.readouterr().out)
    assert "KV cache, 4 x 24448 tokens" in shown and "A decode step takes at least" in shown
    assert run(["plan", bundle, "--gpu", "l40s", "--max-seq-len", "4096", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kv_bytes"] == 4096 * 2 * 2 * 2 * 128 * 2
    assert facts["target"]["sm"] == 89 and facts["free_bytes"] > 0
    assert run(["plan", bundle, "--gpu", "l40s", "--attention", "paged"]) == 0
    shown = words(capsys.readouterr().out)
    pages, tokens = re.findall(r"memory for ([\d,]+) pages of 64 tokens, ([\d,]+) tokens", shown)[0]
    asked = ["plan", bundle, "--gpu", "l40s", "--attention", "paged", "--kv-cache", "fp8"]
    assert run(asked) == 2  # this bundle has no scales; one of its checkpoint in FP8 would
    assert "needs the scales of a calibration" in capsys.readouterr().err
    assert run([*asked, "--precision", "fp8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_token_bytes"] == 2 * 2 * 2 * 128
    whole = [int(number.replace(",", "")) for number in (pages, tokens)]
    assert whole[0] == whole[1] // 64 and whole[1] >= facts["free_bytes"] // (2 * 2 * 2 * 128 * 2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "{}", "--gpu", "h99"], 2, "must be one of"),
        (["plan", "nowhere"], 2, "nowhere must exist"),
        (["plan", "{}", "--gpu", "l4", "--max-batch", "100000"], 2, "but it has 24 GB. Use"),
        (["build", "{}", "--gpu", "l4", "--max-batch", "100000"], 2, "but it has 24 GB. Use"),
        (["plan", "{}", "--gpu", "l4", "--kv-cache", "fp8"], 2, "needs --attention paged"),
        (["build", "{}"], 2, "--gpu"),
        (["build", "{}", "--gpu", "h100"], 3, "an sm_90 GPU (here: none)"),
        (["build", "{}", "--gpu", "h100", "--toolchain", "tensorrt-rtx"], 3, "does not serve h100"),
        (["build", "{}", "--gpu", "l4", "--max-seq-len", "131073"], 2, "131072"),
        (["validate", "{}", "--engine", "l4-bf16"], 2, "Build one: nemo-trt build"),
        (["validate", "{}", "--engine", "../x"], 2, "plain name"),
        (["run", "{}", "hello", "--engine", ""], 2, "given by its name, got engine ''"),
        (["run", "{}", "hello", "--engine", "cuda"], 2, "must have an engine cuda, got none"),
        (
            ["validate", "{}", "--engine", "l4-bf16", "--threads", "2"],
            2,
            "must be left out on l4-bf16",
        ),
        (["export", "{}", "out", "--scales", "{}"], 2, "--scales needs --precision fp8"),
        (
            ["export", "{}", "out", "--precision", "fp8", "--scales", "{}", "--clip", "mse"],
            2,
            "leave --clip out",
        ),
    ],
)
def test_refusals(arguments: list[str], code: int, said: str, bundle: str, capsys: Output) -> None:
    assert run([argument.format(bundle) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert said in words(captured.err) and "Traceback" not in captured.err
    assert not (Path(bundle) / "engines").exists()


@pytest.mark.e2e
def test_build_inspect_and_validate_an_engine(bundle: str, capsys: Output) -> None:
    pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
    asked = ["build", bundle, "--gpu", "rtx4090", "--max-seq-len", "512", "--max-batch", "2"]
    assert run(asked) == 0
    shown = words(capsys.readouterr().out)
    assert "decode-1: " in shown and "decode-2: " in shown and "built in" in shown
    assert "--engine rtx4090-bf16" in shown
    assert run(asked) == 0
    assert "Nothing to do" in words(capsys.readouterr().out)
    assert run(["inspect", bundle]) == 0
    assert "rtx4090-bf16" in capsys.readouterr().out
    assert run(["inspect", bundle, "--json"]) == 0
    assert "rtx4090-bf16" in json.dumps(json.loads(capsys.readouterr().out))
    # It cannot run here, and nothing pretends that it was judged.
    assert run(["validate", bundle, "--engine", "rtx4090-bf16"]) == 3
    assert "GPU" in capsys.readouterr().err
    assert not (Path(bundle) / "engines" / "rtx4090-bf16" / "validation.json").exists()


@pytest.mark.e2e
def test_a_runner_on_an_engine_that_cannot_run_here_says_so(bundle: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
    from nemo_trt.engines.runner import Runner
    from nemo_trt.errors import MachineError

    assert run(["build", bundle, "--gpu", "l4", "--max-seq-len", "64", "--prefill-chunk", "8"]) == 0
    with pytest.raises(MachineError, match="GPU"):
        Runner.open(Path(bundle), "l4-bf16")


def test_calibrated_scales_serve_a_second_export(bundle: str, tmp_path: Path) -> None:
    checkpoint = str(
        Path(json.loads((Path(bundle) / "manifest.json").read_text())["source"]["path"])
    )
    tokens = tmp_path / "samples.jsonl"
    tokens.write_text("".join(f'{{"tokens": [{n}, 7, 99, {n + 1}, 3]}}\n' for n in range(16)))
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["export", checkpoint, "--precision", "fp8"]
    assert run([*common, str(first), "--calibration", str(tokens), "--max-kl", "10"]) == 0
    assert run([*common, str(second), "--scales", str(first)]) == 0
    for name in ("model.onnx", "weights/model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert run([*common, str(tmp_path / "third"), "--scales", bundle]) == 2  # not of FP8


@pytest.mark.e2e
@pytest.mark.parametrize("gpu", [[], ["GPU=l4"]])
def test_make_engine_says_what_it_would_run(gpu: list[str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    (tmp_path / ".installed").touch()
    asked = ["make", "-n", "engine", f"VENV={tmp_path}", f"MODEL={tmp_path}/m", "PRECISION=fp8"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").touch()
    shown = subprocess.run([*asked, *gpu], cwd=root, capture_output=True, text=True)
    if not gpu:
        assert shown.returncode != 0 and "GPU=name" in shown.stderr
        return
    bundle = f"{tmp_path}/m-fp8"
    assert f"nemo-trt export {tmp_path}/m {bundle} --precision fp8" in shown.stdout
    assert f"nemo-trt build {bundle} --gpu l4" in shown.stdout
    assert f"nemo-trt validate {bundle} --engine l4-fp8" in shown.stdout
