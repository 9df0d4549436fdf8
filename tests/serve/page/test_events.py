"""Server-sent events are read whole, wherever the network cuts them."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

pytest.importorskip("playwright.sync_api")

READ = """async ([path, text, size]) => {
    const { events } = await import(path);
    const bytes = new TextEncoder().encode(text);
    const body = new ReadableStream({
        start(control) {
            for (let at = 0; at < bytes.length; at += size)
                control.enqueue(bytes.slice(at, at + size));
            control.close();
        },
    });
    const stream = events(body);
    const found = [];
    for (;;) {
        const { done, value } = await stream.next();
        if (done) return [found, value];
        found.push(value);
    }
}"""
SENT = [{"a": "é 漢字 😀"}, {"b": 2}]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("said", [True, False])
def test_pieces_may_end_anywhere(page: Any, site: Any, end: str, said: bool) -> None:
    text = "".join(f"data: {json.dumps(one, ensure_ascii=False)}{end}" for one in SENT)
    text = f": a comment{end}{text}" + (f"data: [DONE]{end}" if said else "")
    for size in (1, 2, 3, 5, 7, 1000):
        read = page.evaluate(READ, [f"{site.url}/page/stream.js", text, size])
        assert read == [SENT, said], size
