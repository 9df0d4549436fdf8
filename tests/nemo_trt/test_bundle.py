"""`Bundle`: opened once, and passed on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_trt import bundle as module
from nemo_trt.bundle import Bundle
from nemo_trt.errors import BuildError, BundleError

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
