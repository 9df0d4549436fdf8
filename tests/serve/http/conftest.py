"""Fixtures: the sample model behind a real server, and the tiny one that has Tekken's tools."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from nemo_trt.serve import ServeOptions, create_app

CONTEXT = 512


@dataclass(frozen=True)
class Server:
    """A server that runs: its address, its application, a client of it."""

    url: str
    app: Any
    client: openai.OpenAI


@pytest.fixture(scope="module")
def sample(sample_bundle: Any, served: Any) -> Iterator[Server]:
    """SmolLM2 in three slots."""
    yield from run(served, sample_bundle.bundle, max_batch=3)


@pytest.fixture(scope="module")
def tekken(tekken_bundle: Path, served: Any) -> Iterator[Server]:
    """The tiny model in two slots."""
    yield from run(served, tekken_bundle, max_batch=2)


def run(served: Any, bundle: Path, *, max_batch: int) -> Iterator[Server]:
    options = ServeOptions(allow_unvalidated=True, model_name="model")
    app = create_app(bundle, options=options, max_batch=max_batch, max_seq_len=CONTEXT)
    with served(app) as url:
        app.state.service.wait()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            yield Server(url, app, client)
