"""`Bundle`: opened once, and passed on."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt import bundle as module
from nemo_trt.bundle import Bundle
from nemo_trt.errors import BuildError, BundleError
from nemo_trt.manifest import MANIFEST_FILE

pytestmark = pytest.mark.model


def test_an_open_bundle_is_not_read_again(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(str(tiny.bundle))
    assert opened.graph_path.is_file() and all(path.is_file() for path in opened.weight_paths)
    assert str(opened) == str(tiny.bundle) and Path(opened) == tiny.bundle
    monkeypatch.setattr(module, "read_manifest", None)
    assert Bundle.open(opened) is opened


def test_a_session_reads_the_manifest_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_trt.engines.runner import Runner

    reads = []
    really_read = module.read_manifest
    monkeypatch.setattr(module, "read_manifest", lambda path: reads.append(1) or really_read(path))
    with Runner.open(tiny.bundle, max_seq_len=16, threads=1):
        assert len(reads) == 1


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="must be a bundle"):
        Bundle.open(tmp_path)


WRONG = (None, True, -1, 1.5, float("inf"), "x", [], ["x"], {}, {"x": 1}, [[]])
FREE = (
    "adapters",
    "bundle_id",
    "config",
    "quantization",
    "source",
    "stored_dtypes",
    "tokenizer_files",
    "tools",
)
"""Fields of a manifest that can have other values and still be of these files."""


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in JSON data."""
    if path:
        yield path
    parts = data if isinstance(data, dict) else dict(enumerate(data if type(data) is list else ()))
    for key, value in parts.items():
        yield from places(value, (*path, key))


def test_a_manifest_of_wrong_types_is_refused_or_means_the_same(tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny.bundle, tmp_path / "bundle")
    file = tmp_path / "bundle" / MANIFEST_FILE
    text = file.read_text()
    opened = 0
    for path in places(json.loads(text)):
        for wrong in WRONG:
            data = json.loads(text)
            part = data
            for key in path[:-1]:
                part = part[key]
            if part[path[-1]] == wrong:
                continue
            part[path[-1]] = wrong
            file.write_text(json.dumps(data))
            try:
                bundle = Bundle.open(file.parent)
            except BundleError:
                continue
            opened += 1
            assert bundle.weight_bytes and bundle.source_name and bundle.weight_paths
            assert path[0] in FREE or path[-1] in ("file", "sha256"), path
    assert opened


@pytest.mark.parametrize("text", ["[" * 10**6, "{", "1", '{"schema_version": 1}'])
def test_a_manifest_that_is_none_is_refused(text: str, tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny.bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError, match="unreadable"):
        Bundle.open(tmp_path / "bundle")


def test_a_manifest_of_8_gb_is_refused_unread(tiny: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny.bundle, tmp_path / "bundle")
    os.truncate(tmp_path / "bundle" / MANIFEST_FILE, 8 * 2**30)
    with pytest.raises(BundleError, match="must be at most"):
        Bundle.open(tmp_path / "bundle")


def test_engines_have_plain_names(tiny: Any) -> None:
    opened = Bundle.open(tiny.bundle)
    assert opened.engines() == ()
    assert opened.engine_folder("l4-bf16") == tiny.bundle / "engines" / "l4-bf16"
    for name in ("", "..", "a/b"):
        with pytest.raises(BuildError, match="plain name"):
            opened.engine_folder(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Mistral-Nemo-Instruct-2407", "Mistral-Nemo-Instruct-2407"),
        ("/models/nemo.Q8_0.gguf", "nemo.Q8_0"),
        ("/models/mistral-nemo.nemo", "mistral-nemo"),
        ("/cache/models--mistralai--Mistral-Nemo/snapshots/04d8a90549d2", "Mistral-Nemo"),
    ],
)
def test_the_checkpoints_name_is_told(tiny: Any, path: str, name: str) -> None:
    opened = Bundle.open(tiny.bundle)
    source = {**opened.manifest.source, "path": path}
    assert replace(opened, manifest=replace(opened.manifest, source=source)).source_name == name
