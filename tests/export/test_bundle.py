"""The bundle: complete, standard, faithful in every precision, and never half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import pytest
import torch

from nemo_trt import contract
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.errors import BundleError, CheckpointError, ExportError
from nemo_trt.export import bundle as bundle_module
from nemo_trt.export import writer as writer_module
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.decoder import Decoder
from nemo_trt.export.trace import TORCH_DTYPES, numerics_of
from nemo_trt.manifest import read_manifest
from nemo_trt.precision import DType
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(0).integers(0, 512, (2, 12))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own that a test may export in place."""
    target = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@torch.no_grad()
def decoder_logits(checkpoint: Path, precision: DType) -> np.ndarray:
    """Eager logits of the decoder in a precision, weights rounded to it as the graph casts them."""
    opened = open_checkpoint(checkpoint)
    model = Decoder(opened.config, numerics_of(opened.config, precision))
    dtype = TORCH_DTYPES[precision]
    model.load_state_dict(
        {
            name: torch.from_numpy(np.array(ref.read())).view(torch.bfloat16).to(dtype)
            for name, ref in opened.tensors.items()
        }
    )
    config = opened.config
    past = [
        torch.zeros(2, config.num_kv_heads, 32, config.head_dim, dtype=dtype)
        for _ in range(2 * config.num_layers)
    ]
    tokens = torch.from_numpy(TOKENS)
    every = torch.arange(TOKENS.shape[1]).expand(tokens.shape)
    logits, _ = model(tokens, torch.zeros(2, dtype=torch.int64), every, past)
    return np.asarray(logits.numpy())


@pytest.mark.parametrize("precision", [DType.BF16, DType.FP16, DType.FP32])
def test_the_graph_computes_what_the_decoder_computes(
    precision: DType, checkpoint: Path, tmp_path: Path
) -> None:
    export_bundle(checkpoint, tmp_path / "bundle", precision=precision)
    with OrtSession.open(tmp_path / "bundle", max_batch=2, max_seq_len=64) as session:
        session.bind(12)
        every = np.tile(np.arange(12), (2, 1))
        found = session.step(TOKENS, np.zeros(2, np.int64), every)
    # BF16 is promoted to fp32 on the CPU: the reference of that is the decoder in fp32.
    computed = DType.FP32 if precision is DType.BF16 else precision
    expected = decoder_logits(checkpoint, computed)
    limit = {"fp32": 1e-5, "fp16": 5e-3}[computed]
    assert np.linalg.norm(found - expected) <= limit * np.linalg.norm(expected)


def test_the_bundle_is_complete_and_the_checker_accepts_it(tiny: Any, tmp_path: Path) -> None:
    assert {path.split("/")[0] for path in contents(tiny.bundle)} >= {
        "manifest.json",
        "model.onnx",
        "weights",
    }
    copy = tmp_path / "copy"  # the checker refuses files that have hard links, which tests make
    shutil.copytree(tiny.bundle, copy)
    onnx.checker.check_model(copy / "model.onnx", full_check=True)
    model = onnx.load(tiny.bundle / "model.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", contract.OPSET)]
    assert model.ir_version == contract.IR_VERSION
    assert model.producer_name == "nemo-trt" and "KV cache" in model.graph.doc_string
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["nemo_trt.contract_version"] == str(contract.CONTRACT_VERSION)
    assert metadata["nemo_trt.source"] == tiny.checkpoint.name


def test_weights_are_the_checkpoints_bytes(tiny: Any) -> None:
    stored = (tiny.checkpoint / "model.safetensors").read_bytes()
    assert (tiny.bundle / "weights" / "model.safetensors").read_bytes() == stored
    model = onnx.load(tiny.bundle / "model.onnx", load_external_data=False)
    refs = open_checkpoint(tiny.checkpoint).tensors
    for initializer in model.graph.initializer:
        if initializer.name in refs:
            where = {entry.key: entry.value for entry in initializer.external_data}
            ref = refs[initializer.name]
            assert (int(where["offset"]), int(where["length"])) == (ref.offset, ref.num_bytes)


def test_two_exports_are_byte_identical(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_bundle(checkpoint, tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_in_place_adds_two_files_and_leaves_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    before = contents(checkpoint)
    stamp = (checkpoint / "model.safetensors").stat().st_mtime_ns
    manifest = export_bundle(checkpoint, checkpoint, weights="in-place")
    after = contents(checkpoint)
    assert set(after) - set(before) == {"manifest.json", "model.onnx"}
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == stamp
    assert manifest.weights_mode == "in-place"
    onnx.checker.check_model(checkpoint / "model.onnx", full_check=True)
    with OrtSession.open(checkpoint, max_seq_len=64) as session:
        session.bind(4)
    with pytest.raises(ExportError, match="--force"):
        export_bundle(checkpoint, checkpoint, weights="in-place")
    export_bundle(checkpoint, checkpoint, weights="in-place", force=True, precision=DType.FP32)
    assert read_manifest(checkpoint).precision is DType.FP32


def test_in_place_refuses_a_folder_that_does_not_hold_the_weights(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="folder above"):
        export_bundle(checkpoint, tmp_path / "other", weights="in-place")
    real = (checkpoint / "model.safetensors").rename(tmp_path / "blob")
    (checkpoint / "model.safetensors").symlink_to(real)
    with pytest.raises(ExportError, match="symbolic link"):
        export_bundle(checkpoint, checkpoint, weights="in-place")


def test_a_bundle_replaced_in_place_is_one_step_for_readers(checkpoint: Path) -> None:
    """Between its two renames a kill leaves the new graph with the old manifest."""
    export_bundle(checkpoint, checkpoint, weights="in-place")
    old = (checkpoint / "manifest.json").read_bytes()
    new = export_bundle(
        checkpoint, checkpoint, weights="in-place", precision=DType.FP32, force=True
    )
    (checkpoint / "manifest.json").rename(checkpoint / "manifest.next.json")
    (checkpoint / "manifest.json").write_bytes(old)
    assert read_manifest(checkpoint) == new
    (checkpoint / "manifest.next.json").unlink()
    with pytest.raises(BundleError, match="altered"):
        read_manifest(checkpoint)


def test_an_existing_folder_is_replaced_only_when_asked_and_only_a_bundle(
    checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="--force"):
        export_bundle(checkpoint, target)
    with pytest.raises(ExportError, match="must be a bundle"):
        export_bundle(checkpoint, target, force=True)
    assert (target / "thesis.tex").read_text() == "years of work"
    export_bundle(checkpoint, checkpoint, weights="in-place")
    with pytest.raises(ExportError, match="checkpoint stays"):
        export_bundle(checkpoint, checkpoint, force=True)
    assert (checkpoint / "model.safetensors").is_file()


def test_a_failed_export_leaves_the_old_bundle_and_nothing_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    export_bundle(checkpoint, target)
    before = contents(target)

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "sha256_file", fail)
    with pytest.raises(OSError, match="No space"):
        export_bundle(checkpoint, target, force=True)
    assert contents(target) == before
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "checkpoint"}


KILLED = """
import signal, sys, time
from pathlib import Path
from nemo_trt.export import bundle, writer
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
copy = writer.copy_file
def slow(source, target, progress):
    copy(source, target, progress)
    print("copied", flush=True)
    time.sleep(600)
writer.copy_file = slow
bundle.export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_export_leaves_the_old_bundle(
    how: signal.Signals, checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    export_bundle(checkpoint, target)
    before = contents(target)
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(target)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "copied\n"
        os.kill(child.pid, how)
        child.wait(LIMIT_S)
    assert contents(target) == before
    export_bundle(checkpoint, target, force=True)  # also sweeps what the kill left behind
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "checkpoint"}


def test_mixed_dtypes_need_a_named_precision(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].float()}, path)
    with pytest.raises(ExportError, match="--precision"):
        export_bundle(checkpoint, tmp_path / "bundle")
    export_bundle(checkpoint, tmp_path / "bundle", precision=DType.FP32)
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.stored_dtypes == (DType.BF16, DType.FP32)


def test_a_full_disk_is_found_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    monkeypatch.setattr(bundle_module, "trace_decoder", None)
    with pytest.raises(ExportError, match="GB free"):
        export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_checkpoint_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(checkpoint / "model.safetensors", 5000)
    monkeypatch.setattr(bundle_module, "trace_decoder", None)
    with pytest.raises(CheckpointError, match="truncated"):
        export_bundle(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema_version=99), "version"),
        (lambda m: m["config"].pop("head_dim"), "head_dim"),
        (lambda m: m["weights"][0].update(file="../x"), "leaves the bundle"),
        (lambda m: m["weights"][0].update(quick_digest="0"), "altered"),
        (lambda m: m.pop("weights"), "weights"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    change: Any, words: str, tiny: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny.bundle, copy)
    data = json.loads((copy / "manifest.json").read_text())
    change(data)
    (copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=words):
        read_manifest(copy)


@pytest.mark.e2e
def test_tracing_allocates_no_weight(tmp_path: Path) -> None:
    """Nemo's full width: one layer and two tables are 3.2 GB, were they allocated."""
    code = (
        "import re\n"
        "from dataclasses import replace\n"
        "from nemo_trt.export.samples import SHAPES\n"
        "from nemo_trt.export.trace import trace_decoder\n"
        "from nemo_trt.precision import DType\n"
        "trace_decoder(replace(SHAPES['nemo-12b'], num_layers=40), DType.BF16)\n"
        # The peak of this program alone: ru_maxrss would count the test process it came from.
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "assert int(peak[1]) < 1_000_000, peak[1]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
