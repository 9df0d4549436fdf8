"""How the page's files are served: types, policy, validators, under a prefix, packaged."""

import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from nemo_trt.serve import ServeOptions, create_app

from .conftest import Site, Watch, ask, finish

pytestmark = pytest.mark.model

sync_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(path.name for path in (ROOT / "serve" / "page").iterdir())
TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".html": "text/html",
}


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_each_file_has_its_type_the_policy_and_a_validator(site: Site, path: str) -> None:
    answer = httpx.get(site.url + path)
    assert answer.status_code == 200
    kind = answer.headers["content-type"].split(";")[0]
    assert kind == TYPES[Path(path).suffix or ".html"]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = httpx.get(site.url + path, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_nothing_else_is_served_from_there(site: Site) -> None:
    for path in ("/page/", "/page/nowhere.js", "/page/../options.py", "/page/%2e%2e/options.py"):
        answer = httpx.get(site.url + path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "Not Found"


def test_the_page_names_no_other_host() -> None:
    for name in FILES:
        text = (ROOT / "serve" / "page" / name).read_text(encoding="utf-8")
        assert set(re.findall(r"//([\w-]+\.[\w.-]+)", text)) <= {"www.w3.org"}  # SVG's name


def test_every_file_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "page/*" in project["tool"]["setuptools"]["package-data"]["nemo_trt.serve"]
    assert all((ROOT / "serve" / "page" / name).is_file() for name in FILES)  # no folder


def test_it_works_under_a_prefix(context: Any, tekken_bundle: Path, served: Any) -> None:
    inner = create_app(tekken_bundle, options=ServeOptions(allow_unvalidated=True), max_seq_len=256)
    outer = FastAPI()
    outer.mount("/llm", inner)
    with served(outer) as url:
        inner.state.service.wait()
        watch = Watch(f"{url}/llm")
        page = context.new_page()
        watch.on(page)
        page.goto(f"{url}/llm")
        page.locator("#verdict").wait_for()
        page.get_by_label("Max tokens").fill("3")
        ask(page, "Hello?")
        assert finish(page)
        assert page.evaluate("Object.keys(localStorage)[0]").startswith("nemo-trt:/llm/:")
    inner.state.service.close()
    assert not watch.wrong
