"""The page in a real Chromium against a real server; every test watches what the browser minds."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.serve import ServeOptions, create_app
from tests.browsing import Watch
from tests.waiting import LIMIT_S, until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CONTEXT = 4096


@dataclass(frozen=True)
class Site:
    """A server that runs: its address and its application."""

    url: str
    app: Any

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        text = self.app.state.service.metrics.text().decode()
        return int(float(text.split("\nnemo_trt_requests_running ")[1].split()[0]))

    def wait_until_running(self, number: int) -> None:
        """Return when as many requests have a slot."""
        until(lambda: self.num_running == number)


@pytest.fixture(scope="module")
def site(tekken_bundle: Path, served: Any) -> Iterator[Site]:
    """A tiny model that writes noise in all scripts, without a verdict, in two slots."""
    yield from run(served, tekken_bundle, ServeOptions(allow_unvalidated=True, model_name="noise"))


@pytest.fixture
def watch(site: Site) -> Iterator[Watch]:
    """Fails the test when the browser minded something."""
    watch = Watch(site.url)
    yield watch
    assert not watch.wrong


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser's profile of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1000 * LIMIT_S)
    sync_api.expect.set_options(timeout=1000 * LIMIT_S)
    yield context
    context.close()


@pytest.fixture
def page(context: Any, site: Site, watch: Watch) -> Any:
    """The page, loaded, with the likeliest tokens and short answers."""
    page = context.new_page()
    watch.on(page)
    page.goto(site.url)
    page.locator("#verdict").wait_for()
    set_sampling(page, temperature=0, max_tokens=8)
    return page


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of thousands of tokens take minutes: they outlast whatever a browser does."""
    collect = OrtSession.collect

    def collect_slowly(session: OrtSession) -> Any:
        time.sleep(0.05)
        return collect(session)

    monkeypatch.setattr(OrtSession, "collect", collect_slowly)


def run(served: Any, bundle: Path, options: ServeOptions, *, max_batch: int = 2) -> Iterator[Site]:
    """Serve a bundle, ready."""
    app = create_app(bundle, options=options, max_batch=max_batch, max_seq_len=CONTEXT)
    with served(app) as url:
        app.state.service.wait()
        yield Site(url, app)


def set_sampling(page: Any, **values: float) -> None:
    """Set fields of the panel as the user would."""
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def ask(page: Any, question: str) -> None:
    """Type a question and send it."""
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def finish(page: Any) -> str:
    """Wait until the last answer is complete; returns its text."""
    last = page.locator(".answer").last
    sync_api.expect(last).to_have_attribute("aria-busy", "false")
    return str(last.locator(".text").inner_text())


def keep(page: Any, site: Site, *answers: str) -> None:
    """Load the page again with answers that an earlier visit left."""
    kept = [
        {"prompt": text, "answer": {"text": text, "state": "done", "finish": "stop", "stats": None}}
        for text in answers
    ]
    write = "kept => localStorage.setItem('nemo-trt:/:conversation', kept)"
    page.evaluate(write, json.dumps(kept))
    page.reload()
    sync_api.expect(page.locator(".exchange")).to_have_count(len(answers))
