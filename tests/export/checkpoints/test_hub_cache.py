"""A model's folder in the Hugging Face cache opens as the snapshot that huggingface_hub uses."""

import shutil
from pathlib import Path

import pytest

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import open_checkpoint, open_reference
from nemo_trt.export.checkpoints.hub_cache import in_snapshot

pytestmark = pytest.mark.model
OLD, NEW = "0" * 40, "f" * 40
NAME = "models--ORG--NAME"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of one repository with two snapshots; `refs/main` names the first by name."""
    folder = tmp_path / "hub" / NAME
    for revision in (OLD, NEW):
        blob = folder / "blobs" / revision
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text("{}")
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").symlink_to(Path("../../blobs", revision))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(OLD)
    return folder


@pytest.mark.parametrize("revision", [OLD, NEW])
def test_refs_main_chooses_the_snapshot_as_huggingface_hub_does(revision: str, cache: Path) -> None:
    from huggingface_hub import snapshot_download

    (cache / "refs" / "main").write_text(revision)
    expected = snapshot_download("ORG/NAME", cache_dir=cache.parent, local_files_only=True)
    assert in_snapshot(cache) == Path(expected)
    assert in_snapshot(cache).name == revision


def test_the_only_snapshot_needs_no_refs_main(cache: Path) -> None:
    shutil.rmtree(cache / "snapshots" / NEW)
    shutil.rmtree(cache / "refs")  # as after the download of a revision by its hash
    assert in_snapshot(cache) == cache / "snapshots" / OLD


def test_several_snapshots_without_refs_main_are_named(cache: Path) -> None:
    (cache / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match=rf"several snapshots.*/{OLD} or .*/{NEW}\.$"):
        open_checkpoint(cache)


def test_a_cache_without_a_snapshot_says_so(cache: Path) -> None:
    for revision in (OLD, NEW):
        shutil.rmtree(cache / "snapshots" / revision)
    with pytest.raises(CheckpointError, match=r"must hold a snapshot, got none\. Download"):
        open_checkpoint(cache)


@pytest.mark.parametrize("content", [b"abc", b"", b"../blobs", b"\xff\xfe", b"x" * 10**6])
def test_refs_main_must_name_a_snapshot_that_is_there(content: bytes, cache: Path) -> None:
    (cache / "refs" / "main").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the snapshot that refs/main names, ") as caught:
        open_checkpoint(cache)
    assert len(str(caught.value)) < 1200 and "\n" not in str(caught.value)


def test_other_paths_stay_as_they_are(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    for path in (tmp_path, cache / "snapshots" / OLD, cache / "refs" / "main", tmp_path / "none"):
        assert in_snapshot(path) == path


def test_checkpoints_references_and_adapters_are_opened_in_the_cache(
    tiny_checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters

    snapshot = cache / "snapshots" / OLD
    shutil.copytree(tiny_checkpoint, snapshot, dirs_exist_ok=True)
    for found in (open_checkpoint(cache), open_reference(cache), open_checkpoint(cache, "hf")):
        assert found.path == snapshot
    with pytest.raises(CheckpointError, match=rf"{NEW} must be a PEFT adapter"):
        (cache / "refs" / "main").write_text(NEW)
        merge_adapters(open_checkpoint(tiny_checkpoint), [Adapter(cache)])
