"""Real client libraries, each in an environment of its own, against a served model.

`make clients` makes the environments, which takes minutes, and runs these tests. The model is
noise in Mistral's format: what is asserted is the protocol, never the sense of an answer. Each
script names its requirements in its first line. One that evaluates a model says in its second that
the sample model is served; it gets the checkpoint, too.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.serve import ServeOptions, create_app

pytestmark = [pytest.mark.e2e, pytest.mark.clients]

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("use_*.py"))
ENVIRONMENTS = Path(
    os.environ.get("CLIENT_ENVIRONMENTS", Path(__file__).parents[3] / "build" / "clients")
)


SAMPLE = "serves the sample model"


@pytest.fixture(scope="module")
def noise(tekken_bundle: Path, served: Any) -> Iterator[list[str]]:
    with _serving(tekken_bundle, served) as url:
        yield [url, "m"]


@pytest.fixture(scope="module")
def sample(sample_bundle: Any, served: Any) -> Iterator[list[str]]:
    with _serving(sample_bundle.bundle, served) as url:
        yield [url, "m", str(sample_bundle.checkpoint)]


@contextmanager
def _serving(bundle: Path, served: Any) -> Iterator[str]:
    options = ServeOptions(allow_unvalidated=True, model_name="m")
    app = create_app(bundle, options=options, max_batch=2, max_seq_len=1024)
    with served(app) as url:
        app.state.service.wait()
        yield f"{url}/v1"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_client_works(script: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = ENVIRONMENTS / script.stem.removeprefix("use_") / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{script.stem} has no environment: run make clients")
    second = script.read_text().splitlines()[1]
    arguments = request.getfixturevalue("sample" if SAMPLE in second else "noise")
    told = subprocess.run(
        [python, script, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert told.returncode == 0, told.stdout + told.stderr
