"""Real client libraries, each in an environment of its own, against a served model.

`make clients` makes the environments, which takes minutes, and runs these tests. The model is
noise in Mistral's format: what is asserted is the protocol, never the sense of an answer. Each
script names its requirements in its first line.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.serve import ServeOptions, create_app

pytestmark = [pytest.mark.e2e, pytest.mark.clients]

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("use_*.py"))
ENVIRONMENTS = Path(
    os.environ.get("CLIENT_ENVIRONMENTS", Path(__file__).parents[3] / "build" / "clients")
)


@pytest.fixture(scope="module")
def url(tekken_bundle: Path, served: Any) -> Iterator[str]:
    options = ServeOptions(allow_unvalidated=True, model_name="m")
    app = create_app(tekken_bundle, options=options, max_batch=2, max_seq_len=1024)
    with served(app) as url:
        app.state.service.wait()
        yield f"{url}/v1"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_client_works(url: str, script: Path, tmp_path: Path) -> None:
    python = ENVIRONMENTS / script.stem.removeprefix("use_") / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{script.stem} has no environment: run make clients")
    told = subprocess.run(
        [python, script, url, "m"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert told.returncode == 0, told.stdout + told.stderr
