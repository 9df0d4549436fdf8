"""An answer that the user breaks off ends on the server too, and stays as far as it came."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Site, ask, finish, set_sampling

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("slow_steps")]

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect


def begin(page: Any, site: Site) -> None:
    """Ask for an answer that would take minutes, and wait for its beginning."""
    set_sampling(page, max_tokens=4000)
    ask(page, "Go on for ever.")
    expect(page.locator(".answer .text").last).not_to_be_empty()
    assert site.num_running == 1


@pytest.mark.parametrize(
    "stop",
    [
        lambda page: page.get_by_role("button", name="Stop").click(),
        lambda page: page.keyboard.press("Escape"),
    ],
    ids=["button", "escape"],
)
def test_stop_frees_the_slot_and_keeps_what_came(
    page: Any, site: Site, stop: Callable[[Any], None]
) -> None:
    begin(page, site)
    stop(page)
    site.wait_until_running(0)
    text = finish(page)
    stats = page.locator(".stats")
    expect(stats).to_contain_text("stopped")
    assert stats.inner_text().startswith("about ")  # the server's count never came
    assert text and page.locator(".failure:visible").count() == 0
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_label("Your message")).to_be_focused()

    set_sampling(page, max_tokens=2)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And now?")
    kept = json.loads(sent.value.post_data)["messages"][1]
    assert kept["role"] == "assistant" and kept["content"]
    finish(page)
    assert page.locator(".answer .text").first.inner_text() == text


def test_a_new_conversation_stops_the_old_one(page: Any, site: Site) -> None:
    begin(page, site)
    page.get_by_role("button", name="New").click()
    site.wait_until_running(0)
    expect(page.locator(".exchange")).to_have_count(0)
    set_sampling(page, max_tokens=2)
    ask(page, "Another one.")
    finish(page)
    expect(page.locator(".exchange")).to_have_count(1)


def test_a_reload_in_the_middle_keeps_what_came_as_stopped(page: Any, site: Site) -> None:
    begin(page, site)
    before = page.locator(".answer .text").inner_text()
    page.reload()
    site.wait_until_running(0)
    expect(page.locator(".stats")).to_contain_text("stopped")
    assert page.locator(".answer .text").inner_text().startswith(before[:10].strip())
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()


def test_a_question_waits_while_an_answer_comes(page: Any, site: Site) -> None:
    begin(page, site)
    ask(page, "Too early.")
    expect(page.locator(".exchange")).to_have_count(1)
    expect(page.get_by_label("Your message")).to_have_value("Too early.")
    page.keyboard.press("Escape")
    site.wait_until_running(0)
