"""What the page looks like where: narrow, dark, by keyboard, scrolled."""

import re
from typing import Any

import pytest

from .conftest import Site, ask, finish, keep, set_sampling

pytestmark = pytest.mark.e2e

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

WIDE = """\
A_word_without_a_place_to_break_it_that_goes_on_and_on_and_on_and_on_and_on_and_on_and_on

```python
print("a line of code that is a good deal wider than any telephone that anybody ever had")
```

| a table | with | many | columns | that | need | more | room | than | there | is |
|---|---|---|---|---|---|---|---|---|---|---|
| 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 |

https://example.org/an/address/that/is/too/long/for/one/line/of/a/telephone/of/any/kind
"""


def overflowing(page: Any) -> list[str]:
    """What reaches over the right edge, unless it scrolls in a box of its own."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) =>
            node.getBoundingClientRect().right > innerWidth + 1
            && !node.closest("pre, .wide, .unseen")
        ).map((node) => node.outerHTML.slice(0, 80))"""
    )


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_a_phone(page: Any, site: Site, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    keep(page, site, WIDE)
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#panel")).to_be_hidden()
    assert overflowing(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#panel")).to_be_visible()
    assert overflowing(page) == []
    expect(page.get_by_label("Temperature")).to_be_visible()


def test_on_a_phone_the_panel_covers_the_conversation_and_escape_closes_it(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.get_by_role("button", name="Settings").click()
    assert page.locator("#chat").evaluate("node => node.inert")
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    assert not page.locator("#chat").evaluate("node => node.inert")


def background(page: Any) -> int:
    """Brightness of the page, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour.strip("rgba()").split(",")[:3])


def test_colours_follow_the_system_and_the_users_choice_outlives_a_reload(page: Any) -> None:
    button = page.locator("#theme")
    for system, dark in (("light", False), ("dark", True)):
        page.emulate_media(color_scheme=system)
        assert (background(page) < 200) == dark
    button.click()
    expect(button).to_have_accessible_name("Colours: Light")
    assert background(page) > 600
    page.reload()
    assert background(page) > 600
    button.click()
    page.emulate_media(color_scheme="light")
    assert background(page) < 200
    button.click()
    expect(button).to_have_accessible_name("Colours: Auto")
    assert background(page) > 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page: Any, site: Site, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    keep(
        page,
        site,
        "Text with `code`, and [a link](https://example.org).\n\n> quoted\n\n```\nx\n```",
    )
    low = page.evaluate(
        """() => {
            const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
                .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (node) => {
                for (let at = node; at; at = at.parentElement) {
                    const found = parts(getComputedStyle(at).backgroundColor);
                    if (found.length === 3 || found[3] > 0) return found;
                }
            };
            const shown = [...document.querySelectorAll("body *")].filter((node) =>
                node.checkVisibility() && [...node.childNodes].some((child) =>
                    child.nodeType === 3 && child.data.trim()));
            return shown.map((node) => {
                const [a, b] = [light(parts(getComputedStyle(node).color)), light(behind(node))];
                const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                return [ratio, node.outerHTML.slice(0, 80)];
            }).filter(([ratio]) => ratio < 4.5);
        }"""
    )
    assert low == []


def test_everything_is_reached_and_used_by_keyboard(page: Any) -> None:
    page.reload()
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    expect(page.get_by_label("Your message")).to_have_value("One line\nand another")
    page.keyboard.press("Enter")
    finish(page)
    page.locator(".skip").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                    const node = document.activeElement;
                    const style = getComputedStyle(node);
                    const seen = node.matches(":focus-visible") && style.outlineStyle !== "none";
                    const text = node === document.body ? "BODY" : node.textContent.trim();
                    const name = node.id || text || node.tagName;
                    return seen ? name : `${name} without an outline`;
                }"""
            )
        )
        if reached[-1].startswith("BODY"):
            break
    wanted = "new theme panel-toggle scroll Copy Regenerate question send system temperature top_p"
    wanted += " top_k min_p repetition_penalty max_tokens seed"
    assert set(wanted.split()) | {"Edit question"} <= set(reached)
    assert not [name for name in reached if name.endswith("outline") and name[:4] != "BODY"]


def test_every_control_has_a_name(page: Any) -> None:
    controls = page.locator("button, input, textarea, dialog, [role=region]")
    names = controls.evaluate_all("nodes => nodes.map((node) => node.outerHTML)")
    assert len(names) > 10
    for index in range(controls.count()):
        control = controls.nth(index)
        if control.is_visible():
            expect(control).to_have_accessible_name(re.compile(r"\S"))


def test_who_asks_for_less_motion_gets_it(page: Any, context: Any) -> None:
    moves = "getComputedStyle(document.querySelector('.waiting'), '::after').animationName"
    ask(page, "Hello?")
    finish(page)
    assert page.evaluate(moves) == "wait"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moves) == "none"


@pytest.mark.usefixtures("slow_steps")
def test_the_end_stays_in_sight_until_the_user_scrolls_up(page: Any, site: Site) -> None:
    page.set_viewport_size({"width": 360, "height": 480})
    box = page.locator("#scroll")
    left = "node => Math.round(node.scrollHeight - node.scrollTop - node.clientHeight)"
    keep(page, site, "word\n\n" * 60)
    assert box.evaluate(left) <= 1
    set_sampling_hidden(page, max_tokens=3000)
    ask(page, "Go on for ever.")
    expect(page.locator(".answer").last.locator(".text")).not_to_be_empty()
    assert box.evaluate(left) < 48
    box.evaluate("node => { node.scrollTop = 100; }")
    expect(page.get_by_role("button", name="Latest")).to_be_visible()
    height = box.evaluate("node => node.scrollHeight")
    while box.evaluate("node => node.scrollHeight") == height:
        pass  # more comes
    assert box.evaluate("node => node.scrollTop") == 100
    page.get_by_role("button", name="Latest").click()
    assert box.evaluate(left) < 48
    page.keyboard.press("Escape")
    site.wait_until_running(0)


def set_sampling_hidden(page: Any, **values: float) -> None:
    """Set fields of a panel that is closed."""
    page.get_by_role("button", name="Settings").click()
    set_sampling(page, **values)
    page.get_by_role("button", name="Settings").click()
