"""The charts of the server's load, and the settings that say what the server's defaults are."""

import re
from typing import Any

import pytest

from nemo_trt.serve.http.schema import ChatRequest

from .conftest import Site, ask, finish, set_sampling

pytestmark = pytest.mark.e2e

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
HIDE = """hidden => {
    const state = hidden ? "hidden" : "visible";
    Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def chart(page: Any, name: str) -> Any:
    return page.locator("figure").filter(has_text=name)


@pytest.mark.usefixtures("slow_steps")
def test_charts_show_what_runs(page: Any, site: Site) -> None:
    expect(chart(page, "Slots in use").locator("output")).to_have_text("0 of 2")
    set_sampling(page, max_tokens=4000)
    ask(page, "Go on for ever.")
    expect(chart(page, "Slots in use").locator("output")).to_have_text("1 of 2")
    expect(chart(page, "Tokens/s").locator("output")).to_have_text(re.compile(r"^[1-9]"))
    line = chart(page, "Tokens/s").locator(".line")
    expect(line).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+L"))
    expect(chart(page, "Waiting").locator("output")).to_have_text("0")
    page.keyboard.press("Escape")
    site.wait_until_running(0)
    expect(chart(page, "Slots in use").locator("output")).to_have_text("0 of 2")


def test_metrics_are_asked_for_only_while_they_are_seen(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    page.clock.install()
    page.reload()
    expect(chart(page, "Slots in use").locator("output")).to_have_text("0 of 2")
    for _ in range(2):  # the clock stands still: each second asks once
        with page.expect_response("**/metrics"):
            page.clock.run_for(1000)
    toggle = page.locator("#panel-toggle")
    for hide, show in (
        (lambda: page.evaluate(HIDE, True), lambda: page.evaluate(HIDE, False)),
        (toggle.click, toggle.click),
    ):
        hide()
        before = asked.count("metrics")
        page.clock.run_for(10_000)
        assert asked.count("metrics") == before >= 3
        with page.expect_response("**/metrics"):
            show()
            page.clock.run_for(1000)


def test_the_settings_show_the_servers_own_defaults(page: Any, site: Site) -> None:
    fields = page.evaluate(
        "async (path) => (await import(path)).FIELDS", f"{site.url}/page/settings.js"
    )
    assert {"temperature", "top_p", "top_k", "min_p", "seed"} < {field["name"] for field in fields}
    for field in fields:
        assert ChatRequest.model_fields[field["name"]].default == field["value"]
        for bound in ("min", "max"):
            if bound in field:
                message = {"role": "user", "content": "x"}
                ChatRequest.model_validate({"messages": [message], field["name"]: field[bound]})


def test_what_is_set_is_sent_and_shown_and_set_back(page: Any) -> None:
    set_sampling(page, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1)
    set_sampling(page, max_tokens=2, seed=7)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Hello?")
    body = sent.value.post_data_json
    finish(page)
    del body["messages"], body["stream"], body["stream_options"]
    assert body == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "repetition_penalty": 1.1, "max_tokens": 2, "seed": 7,
    }  # fmt: skip
    page.get_by_role("button", name="Server’s defaults").click()
    expect(page.get_by_label("Temperature")).to_have_value("1")
    expect(page.get_by_role("button", name="Server’s defaults")).to_be_hidden()
    expect(page.locator(".field.changed")).to_have_count(0)


def test_without_a_verdict_the_page_says_so_loudly(page: Any) -> None:
    expect(page.locator("#verdict")).to_have_text("Not validated")
    warning = page.get_by_role("alert").filter(has_text="Not validated")
    expect(warning).to_contain_text("none yet: run nemo-trt validate")
