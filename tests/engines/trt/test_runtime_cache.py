"""The runtime cache's file: read, refused, damaged, kept; TensorRT itself needs a GPU for it."""

import logging
from pathlib import Path

import pytest

from nemo_trt.engines.trt.runtime_cache import RuntimeCache

pytestmark = pytest.mark.unit


class FakeConfig:
    """TensorRT's runtime configuration, and its cache of what was read or compiled."""

    def __init__(self, compiled: bytes = b"", *, refuses: bool = False) -> None:
        self.held, self.compiled, self.refuses = b"", compiled, refuses
        self.given: object = None

    def create_runtime_cache(self) -> "FakeConfig":
        return self

    def deserialize(self, blob: bytes) -> bool:
        self.held = b"" if self.refuses else blob
        return not self.refuses

    def set_runtime_cache(self, cache: object) -> bool:
        self.given = cache
        return True

    def serialize(self) -> bytes:
        return self.held or self.compiled


def opened(config: FakeConfig, plan: Path, digest: str = "ab" * 32) -> FakeConfig:
    cache = RuntimeCache(config, plan, digest)
    assert config.given is config
    cache.keep()
    return config


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_second_opening_is_given_what_the_first_compiled(tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    opened(FakeConfig(b"kernels"), plan)
    (file,) = files(tmp_path)
    assert file.name == "engine-abababababababab.runtime-cache"
    written = file.stat()
    second = opened(FakeConfig(b"other"), plan)
    assert second.held == b"kernels"
    assert file.stat().st_ino == written.st_ino, "nothing new, nothing written"


def test_another_plan_has_another_file(tmp_path: Path) -> None:
    opened(FakeConfig(b"one"), tmp_path / "engine.plan")
    assert opened(FakeConfig(b"two"), tmp_path / "engine.plan", "cd" * 32).held == b""
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_a_damaged_file_is_not_given_to_tensorrt_and_replaced(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tmp_path / "engine.plan"
    opened(FakeConfig(b"kernels"), plan)
    (file,) = files(tmp_path)
    file.write_bytes(damage)
    assert opened(FakeConfig(b"kernels"), plan).held == b""
    assert "is damaged" in caplog.text
    assert opened(FakeConfig(), plan).held == b"kernels"


def test_a_file_of_another_driver_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tmp_path / "engine.plan"
    opened(FakeConfig(b"old"), plan)
    with caplog.at_level(logging.INFO):
        opened(FakeConfig(b"new", refuses=True), plan)
    assert "another TensorRT, GPU or driver" in caplog.text
    assert opened(FakeConfig(), plan).held == b"new"


def test_a_folder_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(FakeConfig(b"kernels"), tmp_path / "missing" / "engine.plan")
    assert "is not written" in caplog.text
