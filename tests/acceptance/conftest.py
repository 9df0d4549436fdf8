"""One acceptance on a machine without a GPU; tests work on copies of its folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from .running import Acceptance, Ran


@pytest.fixture(scope="session")
def accepted_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers whose attention TensorRT fuses, small enough to compile in seconds."""
    from nemo_trt.export.samples import SHAPES, write_seeded

    folder = tmp_path_factory.mktemp("accepted") / "small"
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
    write_seeded(folder, config)
    return folder


@pytest.fixture(scope="session")
def first(accepted_checkpoint: Path) -> Ran:
    """The first run. Read only."""
    pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")
    programs = accepted_checkpoint.parent / "programs"
    programs.mkdir()
    return Acceptance(accepted_checkpoint, accepted_checkpoint.parent / "out", programs).run()


@pytest.fixture
def again(first: Ran, accepted_checkpoint: Path, tmp_path: Path) -> Acceptance:
    """A copy of the first run's folder, to go on with."""
    shutil.copytree(first.folder, tmp_path / "out")
    return Acceptance(
        accepted_checkpoint, tmp_path / "out", accepted_checkpoint.parent / "programs"
    )
