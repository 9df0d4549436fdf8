"""Answers are a stranger's text: Markdown shows, and nothing in it does anything."""

from typing import Any

import pytest

from .conftest import Site, keep

pytestmark = pytest.mark.e2e

sync_api = pytest.importorskip("playwright.sync_api")

RENDER = """async ([path, text]) => {
    const { render } = await import(path);
    const box = document.createElement("div");
    render(box, text);
    return box.innerHTML;
}"""
LINK = 'target="_blank" rel="noopener noreferrer"'


@pytest.fixture(scope="module")
def rendered(browser: Any, site: Any) -> Any:
    """HTML that a text becomes."""
    page = browser.new_page()
    page.goto(site.url)
    yield lambda text: page.evaluate(RENDER, [f"{site.url}/page/markdown.js", text])
    page.close()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# One\n###### Six", "<h3>One</h3><h6>Six</h6>"),
        ("a **b _c_** d", "<p>a <strong>b <em>c</em></strong> d</p>"),
        ("*a* and __b__ ~~c~~", "<p><em>a</em> and <strong>b</strong> <del>c</del></p>"),
        ("snake_case_name 2 * 3 * 4", "<p>snake_case_name 2 * 3 * 4</p>"),
        (r"\*no\* \[x\]", "<p>*no* [x]</p>"),
        ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
        (
            "- a\n- b\n  - c\n\nd",
            "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li></ul><p>d</p>",
        ),
        ("3. a\n4. b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
        (
            "1. a\n\n   more\n\n2. b",
            '<ol start="1"><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>',
        ),
        ("> a\n> - b", "<blockquote><p>a</p><ul><li><p>b</p></li></ul></blockquote>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("[a](https://x.org/b_(c))", f'<p><a href="https://x.org/b_(c)" {LINK}>a</a></p>'),
        ("See http://x.org/a.", f'<p>See <a href="http://x.org/a" {LINK}>http://x.org/a</a>.</p>'),
        ("", ""),
    ],
)
def test_markdown_shows(rendered: Any, text: str, html: str) -> None:
    assert rendered(text) == html


def test_code_keeps_its_signs_even_while_it_is_written(rendered: Any) -> None:
    whole = rendered("```python\nif a < b:\n    *x*\n\n# no heading\n```\nafter")
    assert "<span>python</span>" in whole
    assert "<code>if a &lt; b:\n    *x*\n\n# no heading</code>" in whole and whole.endswith(
        "<p>after</p>"
    )
    assert "<code>half</code>" in rendered("```\nhalf")


def test_a_table_shows(rendered: Any) -> None:
    found = rendered("| a | b |\n|---|:-:|\n| 1 | **2** |")
    assert "<th>a</th><th>b</th>" in found and "<td>1</td><td><strong>2</strong></td>" in found


HOSTILE = [
    '<img src=x onerror="window.hurt=1">',
    "<script>window.hurt=1</script>",
    "[click](javascript:window.hurt=1)",
    "[click](JaVaScRiPt:window.hurt=1)",
    "[click](\x01javascript:window.hurt=1)",
    "[click](data:text/html,<script>window.hurt=1</script>)",
    "[click](vbscript:x) [here](/v1/models) [there](//evil.example/)",
    "![x](https://evil.example/pixel.png)",
    '[a](https://x.org/"onclick="window.hurt=1)',
    "`<img src=x onerror=window.hurt=1>`",
    "```html\n<img src=x onerror=window.hurt=1>\n```",
    '```"><img src=x onerror=window.hurt=1>\n```',
    "| <img src=x onerror=window.hurt=1> | b |\n|---|---|\n| <svg onload=window.hurt=1> | 2 |",
    "<iframe srcdoc='<script>parent.hurt=1</script>'></iframe><style>*{display:none}</style>",
]


def test_nothing_in_an_answer_is_markup_or_leads_into_code(page: Any, site: Site) -> None:
    keep(page, site, *HOSTILE)
    exchanges = page.locator("#exchanges")
    forbidden = exchanges.locator("img, script, iframe, style, [onerror], [onload], [onclick]")
    assert forbidden.count() == 0
    links = [link.get_attribute("href") for link in exchanges.locator("a").all()]
    assert links and all(link.startswith("https://") for link in links)
    for link in exchanges.get_by_text("click").all():
        link.click()
    assert page.evaluate("window.hurt") is None
    shown = exchanges.inner_text()
    assert '<img src=x onerror="window.hurt=1">' in shown and "[click](javascript:" in shown


def test_a_long_answer_of_openings_takes_no_time(rendered: Any) -> None:
    for text in ("[" * 5000, "**a " * 5000, "`" * 5000, "> " * 5000, "- " * 5000, "*_" * 5000):
        assert rendered(text)


def test_blocks_that_are_complete_keep_their_nodes(browser: Any, site: Any) -> None:
    page = browser.new_page()
    page.goto(site.url)
    kept = page.evaluate(
        """async (path) => {
            const { render } = await import(path);
            const box = document.createElement("div");
            render(box, "one\\n\\ntw");
            const [first, second] = box.children;
            render(box, "one\\n\\ntwo\\n\\nthree");
            return [box.children[0] === first, box.children[1] === second, box.children.length];
        }""",
        f"{site.url}/page/markdown.js",
    )
    page.close()
    assert kept == [True, False, 3]
