"""Fixtures: a seeded Nemo-shaped tiny model and the real sample model, each exported once."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from .fixture_cache import FixtureCache

pytest_plugins = ["tests.tiers", "tests.workers", "tests.browsing", "tests.traces"]

settings.register_profile("project", deadline=None)  # timed tests fail on a busy machine
settings.load_profile("project")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Triton decides when it is imported: kernels run in its interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")


@dataclass(frozen=True)
class Exported:
    """A checkpoint and the bundle made from it."""

    checkpoint: Path
    bundle: Path


@pytest.fixture(scope="session")
def cached() -> Iterator[Callable[..., Path]]:
    """`cached("name", make)` is a folder that `make(folder)` filled, in this run or before."""
    cache = FixtureCache()
    yield cache.get
    cache.close()


@pytest.fixture(scope="session")
def tiny_checkpoint(cached: Any) -> Path:
    """Two layers of Nemo's awkward ratios (head_dim != dim / heads), seeded, vocabulary 512."""

    def make(folder: Path) -> None:
        from nemo_trt.export.samples import SHAPES, write_seeded

        write_seeded(folder / "checkpoint", replace(SHAPES["nemo-tiny"], vocab_size=512), seed=1)

    return Path(cached("tiny-checkpoint", make) / "checkpoint")


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path, cached: Any) -> Exported:
    """The tiny model in fp32, so that comparisons can be tight."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle
        from nemo_trt.precision import DType

        export_bundle(tiny_checkpoint, folder / "bundle-fp32", precision=DType.FP32)

    return Exported(tiny_checkpoint, cached("tiny", make) / "bundle-fp32")


@pytest.fixture(scope="session")
def sample_tokenizer(cached: Any) -> Path:
    """A folder with the sample model's tokenizer and config, and without its weights."""

    def make(folder: Path) -> None:
        from nemo_trt.export.checkpoints.gguf_tokenizer import smollm_tokenizer, tokenizer_config
        from nemo_trt.export.samples import smollm2

        fields = {name: field.contents() for name, field in smollm2._open_gguf().fields.items()}
        (folder / "tokenizer.json").write_bytes(smollm_tokenizer(fields))
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(fields)))
        (folder / "config.json").write_text(json.dumps(smollm2._config(fields)))

    return Path(cached("sample-tokenizer", make))


@pytest.fixture(scope="session")
def sample_checkpoint(cached: Any) -> Path:
    """SmolLM2-135M-Instruct, a real language model."""

    def make(folder: Path) -> None:
        from nemo_trt.export.samples import write_smollm2

        write_smollm2(folder / "checkpoint")

    return Path(cached("sample-checkpoint", make) / "checkpoint")


@pytest.fixture(scope="session")
def sample_bundle(sample_checkpoint: Path, cached: Any) -> Exported:
    """The sample model and its BF16 bundle."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle

        export_bundle(sample_checkpoint, folder / "bundle")

    return Exported(sample_checkpoint, cached("sample", make) / "bundle")


@pytest.fixture(scope="session")
def shallow(sample_checkpoint: Path, cached: Any) -> Exported:
    """The sample model's first four layers: real weights and tokenizer, a quarter of the work."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle

        first_layers(sample_checkpoint, folder / "checkpoint", 4)
        export_bundle(folder / "checkpoint", folder / "bundle")

    folder = cached("shallow", make)
    return Exported(folder / "checkpoint", folder / "bundle")


def first_layers(source: Path, target: Path, num_layers: int) -> None:
    """Write a Hugging Face checkpoint again without its later layers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = num_layers
    (target / "config.json").write_text(json.dumps(config))
    kept = {
        name: tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < num_layers
    }
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def sample_fp8(sample_checkpoint: Path, cached: Any) -> Path:
    """The sample model's FP8 bundle, quantised as a user would."""

    def make(folder: Path) -> None:
        from nemo_trt.cli.main import run

        command = ["export", str(sample_checkpoint), str(folder / "bundle"), "--precision", "fp8"]
        assert run(command) == 0

    rooms = ("nemo_trt", "export", "engines", "validate", "cli")
    return Path(cached("sample-fp8", make, rooms=rooms) / "bundle")


@pytest.fixture(scope="session")
def tekken_bundle(cached: Any) -> Path:
    """Two seeded layers over the real Tekken: noise, in Mistral's format."""

    def make(folder: Path) -> None:
        from nemo_trt.export.bundle import export_bundle
        from nemo_trt.export.samples import SHAPES, write_seeded
        from nemo_trt.precision import DType

        write_seeded(folder / "checkpoint", SHAPES["nemo-tiny"], seed=3)
        export_bundle(folder / "checkpoint", folder / "bundle", precision=DType.FP32)

    return Path(cached("tekken", make) / "bundle")


@pytest.fixture(scope="session")
def vouch() -> Callable[..., Path]:
    """Writes a passing verdict of a bundle as it is, as the validator would have: `vouch(bundle,
    "cuda", max_seq_len=512)`. Fields of the report may be given."""
    return _vouch


def _vouch(
    folder: Path,
    where: str = "cpu",
    *,
    compute_precision: str = "fp32",
    max_seq_len: int = 8192,
    max_batch: int = 8,
    private_key: bytes | None = None,
    **changed: Any,
) -> Path:
    from nemo_trt.bundle import Bundle
    from nemo_trt.coverage import Coverage, digests_of
    from nemo_trt.tolerances import CASES, tolerance_of
    from nemo_trt.validate.report import CaseReport, Report
    from nemo_trt.verdict import verdict_path
    from nemo_trt.where import Where

    bundle, place = Bundle.open(folder), Where.of(where)
    exact = {"relative_l2": (0.0,), "cosine": (1.0,), "kl": (0.0,), "top1": (1.0,), "top5": (1.0,)}
    judged = CaseReport(
        name="",
        max_abs=0.0,
        mean_abs=0.0,
        max_relative_l2=0.0,
        min_cosine=1.0,
        max_kl=0.0,
        mean_kl=0.0,
        top1=1.0,
        top5=1.0,
        failures=(),
        positions=(("text 1", 0),),
        per_position=exact,
    )
    report = Report(
        bundle_id=bundle.bundle_id,
        engine={"compute_precision": compute_precision},
        reference={},
        settings={"perplexity_not_judged": None},
        limits=asdict(tolerance_of(compute_precision)),
        perplexity={"engine": 1.0, "reference": 1.0},
        cases=tuple(replace(judged, name=name) for name in CASES),
        failures=(),
        coverage=Coverage(
            where=place,
            max_seq_len=max_seq_len,
            max_batch=max_batch,
            compute_precision=compute_precision,
            digests=digests_of(bundle, place),
        ),
    )
    file = verdict_path(bundle, place)
    file.write_text(replace(report, **changed).to_json(private_key), encoding="utf-8")
    return file
