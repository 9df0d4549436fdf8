"""A conversation: asked, streamed, counted, kept, taken back."""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.serve import ServeOptions
from tests.waiting import LIMIT_S

from .conftest import Site, ask, finish, run, set_sampling

pytestmark = pytest.mark.e2e

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
FRANCE = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def site(
    sample_bundle: Any, served: Any, vouch: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """SmolLM2 with a passing verdict; its weights are links."""
    bundle = tmp_path_factory.mktemp("validated") / "smollm2"
    shutil.copytree(sample_bundle.bundle, bundle, copy_function=os.link)
    vouch(bundle)
    yield from run(served, bundle, ServeOptions())


def test_an_answer_comes_in_pieces_and_is_counted(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, collect = threading.Semaphore(0), OrtSession.collect

    def collect_when_allowed(session: OrtSession) -> Any:
        assert allowed.acquire(timeout=LIMIT_S)
        return collect(session)

    monkeypatch.setattr(OrtSession, "collect", collect_when_allowed)
    ask(page, FRANCE)
    text = page.locator(".answer .text")
    words = ["The", "The capital", "The capital of"]
    for so_far in words:  # each is seen while the server waits
        allowed.release()
        expect(text).to_have_text(so_far)
    allowed.release(100)
    assert finish(page).startswith("The capital of France is Paris")
    stats = page.locator(".stats").inner_text()
    assert re.fullmatch(
        r"\d+ tokens · \d+\.\d tokens/s · first token after \d+\.\d\d s( · .*)?", stats
    )
    expect(page.locator("#announcer")).to_contain_text("Paris")
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.get_by_label("Your message")).to_have_value("")


def test_the_counts_are_the_servers_own(page: Any, site: Site) -> None:
    set_sampling(page, max_tokens=7)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Tell me a long story.")
    finish(page)
    assert page.locator(".stats").inner_text().startswith("7 tokens · ")
    assert "cut off at its length limit" in page.locator(".stats").inner_text()
    body = json.loads(sent.value.post_data)
    assert body == {
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "temperature": 0,
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_second_question_knows_the_first_and_the_system_prompt(page: Any) -> None:
    page.get_by_label("System prompt").fill("Be brief.")
    set_sampling(page, max_tokens=8)
    ask(page, FRANCE)
    first = finish(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And of Italy?")
    finish(page)
    messages = json.loads(sent.value.post_data)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[2]["content"].strip() == first.strip()


def test_what_answers_and_its_verdict_are_shown(page: Any, site: Site) -> None:
    expect(page.locator("#model")).to_have_text(site.app.state.service.model_name)
    expect(page.locator("#facts")).to_have_text("ONNX Runtime CPU · fp32 · 4,096 tokens · 2 slots")
    expect(page.locator("#verdict")).to_have_class("badge pass")
    expect(page.locator("#warning")).to_be_hidden()
    details = page.locator("#details").inner_text()
    assert site.app.state.service.bundle.bundle_id[:12] in details


def test_a_reload_keeps_conversation_and_settings(page: Any) -> None:
    page.get_by_label("System prompt").fill("Be brief.")
    set_sampling(page, max_tokens=6, top_k=40)
    ask(page, FRANCE)
    answer = finish(page)
    stats = page.locator(".stats").inner_text()
    page.reload()
    expect(page.locator(".question p")).to_have_text(FRANCE)
    assert page.locator(".answer .text").inner_text() == answer
    assert page.locator(".stats").inner_text() == stats
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    expect(page.get_by_label("Top k")).to_have_value("40")
    expect(page.get_by_label("Temperature")).to_have_value("0")
    page.get_by_role("button", name="New").click()
    page.reload()
    expect(page.locator(".exchange")).to_have_count(0)
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")


def test_an_answer_is_had_again_and_a_question_taken_back(page: Any) -> None:
    set_sampling(page, max_tokens=4)
    ask(page, FRANCE)
    finish(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Regenerate").click()
    assert len(json.loads(sent.value.post_data)["messages"]) == 1
    finish(page)
    expect(page.locator(".exchange")).to_have_count(1)
    page.get_by_role("button", name="Edit question").click()
    expect(page.locator(".exchange")).to_have_count(0)
    expect(page.get_by_label("Your message")).to_have_value(FRANCE)
    expect(page.get_by_label("Your message")).to_be_focused()


def test_an_answer_is_copied_as_it_was_written(page: Any, context: Any) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    set_sampling(page, max_tokens=6)
    ask(page, FRANCE)
    finish(page)
    page.get_by_role("button", name="Copy answer").click()
    expect(page.get_by_role("button", name="Copy answer")).to_have_text("Copied")
    kept = page.evaluate("JSON.parse(localStorage.getItem('nemo-trt:/:conversation'))")
    assert page.evaluate("navigator.clipboard.readText()") == kept[0]["answer"]["text"]
