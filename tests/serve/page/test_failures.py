"""What goes wrong is told in words, with a way on."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemo_trt.engines.runner import Runner
from nemo_trt.serve import ServeOptions, create_app
from tests.waiting import LIMIT_S

from .conftest import CONTEXT, Site, Watch, ask, finish, run, set_sampling

pytestmark = pytest.mark.e2e

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
KEY = "a-very-secret-key"


@pytest.fixture(scope="module")
def guarded(tekken_bundle: Path, served: Any) -> Iterator[Site]:
    """A server that wants a key and has one slot and one place in its queue."""
    options = ServeOptions(api_keys=(KEY,), allow_unvalidated=True, max_queue=1)
    yield from run(served, tekken_bundle, options, max_batch=1)


@contextmanager
def opened(context: Any, url: str, *statuses: int) -> Iterator[Any]:
    """The page at another address; answers with these statuses are expected."""
    watch = Watch(url, expected_statuses=set(statuses))
    page = context.new_page()
    watch.on(page)
    page.goto(url)
    page.locator("#verdict").wait_for()
    set_sampling(page, max_tokens=4)
    yield page
    assert not watch.wrong


def give_key(page: Any, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use key").click()


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(context: Any, guarded: Site) -> None:
    with opened(context, guarded.url, 401) as page:
        ask(page, "Hello?")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("answers only those who have a key")
        give_key(page, "wrong")
        expect(dialog).to_contain_text("did not accept")
        give_key(page, KEY)
        expect(dialog).to_be_hidden()
        finish(page)
        assert page.locator(".failure:visible").count() == 0
        page.reload()
        ask(page, "And after a reload?")
        finish(page)
        expect(dialog).to_be_hidden()
        kept = page.evaluate("[JSON.stringify({...localStorage}), location.href]")
        assert KEY not in "".join(kept)
        assert KEY in page.evaluate("JSON.stringify({...sessionStorage})")


def test_without_a_key_the_error_says_so_and_retry_asks_again(context: Any, guarded: Site) -> None:
    with opened(context, guarded.url, 401) as page:
        ask(page, "Hello?")
        page.get_by_role("button", name="Cancel").click()
        failure = page.get_by_role("alert").filter(has_text="API key")
        expect(failure).to_contain_text("This server asks for an API key")
        failure.get_by_role("button", name="Retry").click()
        give_key(page, KEY)
        finish(page)
        expect(failure).to_be_hidden()


@pytest.mark.usefixtures("slow_steps")
def test_a_full_queue_is_told_with_the_time_to_wait(context: Any, guarded: Site) -> None:
    more = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        opened(context, guarded.url, 401, 429) as page,
        httpx.Client(base_url=guarded.url, headers=headers, timeout=LIMIT_S) as client,
    ):
        with client.stream("POST", "/v1/completions", json=more) as first:
            lines = first.iter_lines()  # dropped, it would hang up
            next(lines)
            with client.stream("POST", "/v1/completions", json=more):  # waits in the queue
                ask(page, "Hello?")
                give_key(page, KEY)
                failure = page.locator(".failure")
                expect(failure).to_contain_text("The server is busy")
        guarded.wait_until_running(0)
        failure.get_by_role("button", name="Retry", exact=True).click()
        finish(page)
        expect(failure).to_be_hidden()


def test_a_prompt_that_is_too_long_is_told_with_both_numbers(page: Any, watch: Watch) -> None:
    watch.expected_statuses.add(400)
    ask(page, "many words " * CONTEXT)
    failure = page.locator(".failure")
    expect(failure).to_contain_text("This is too long for the model")
    assert str(CONTEXT) in failure.inner_text()
    number = re.search(r"resulted in (more than )?(\d+) tokens", failure.inner_text())
    assert number and int(number[2]) > CONTEXT
    page.get_by_role("button", name="Edit question").click()
    ask(page, "A short one.")
    finish(page)
    expect(failure).to_be_hidden()


def test_a_question_that_got_no_answer_is_left_out(page: Any, watch: Watch) -> None:
    watch.expected_statuses.add(400)
    ask(page, "many words " * CONTEXT)
    expect(page.locator(".failure")).to_be_visible()
    ask(page, "A short one.")
    finish(page)
    assert page.locator(".answer").last.locator(".failure").is_hidden()
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)  # it is past


def test_a_setting_out_of_bounds_is_not_sent(page: Any) -> None:
    set_sampling(page, max_tokens=0)
    ask(page, "Hello?")
    expect(page.get_by_label("Max tokens")).to_be_focused()
    expect(page.locator(".exchange")).to_have_count(0)
    expect(page.get_by_label("Your message")).to_have_value("Hello?")


def test_a_server_that_starts_is_waited_for(
    context: Any, tekken_bundle: Path, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open = threading.Event()
    really_open = Runner.open

    def slow(*arguments: Any, **options: Any) -> Runner:
        may_open.wait(LIMIT_S)
        return really_open(*arguments, **options)

    monkeypatch.setattr(Runner, "open", slow)
    app = create_app(tekken_bundle, options=ServeOptions(allow_unvalidated=True), max_seq_len=64)
    with served(app) as url, opened(context, url, 503) as page:
        expect(page.locator("#warning")).to_have_text("The server is starting.")
        ask(page, "Hello?")
        expect(page.locator(".failure")).to_contain_text("The server is not ready")
        may_open.set()
        expect(page.locator("#warning")).to_contain_text("Not validated (none yet")
        page.get_by_role("button", name="Retry", exact=True).click()
        finish(page)
        expect(page.locator(".failure")).to_be_hidden()


@pytest.mark.usefixtures("slow_steps")
def test_an_engine_that_closes_ends_the_answer_with_its_words(
    context: Any, tekken_bundle: Path, served: Any
) -> None:
    options = ServeOptions(allow_unvalidated=True)
    app = create_app(tekken_bundle, options=options, max_seq_len=CONTEXT)
    with served(app) as url, opened(context, url, 503) as page:
        app.state.service.wait()
        set_sampling(page, max_tokens=4000)
        ask(page, "Go on for ever.")
        expect(page.locator(".answer .text")).not_to_be_empty()
        app.state.service.close()
        expect(page.locator(".failure")).to_contain_text("shutting down")
        expect(page.locator(".answer .text")).not_to_be_empty()
        expect(page.locator("#warning")).to_have_text("The server is shutting down.")


class Wire:
    """A connection to a server that a test can cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[socket.socket] = []
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def cut(self) -> None:
        """Take no more connections, and lose those that there are."""
        self._is_cut = True  # before the first is lost: the page must not ask by way of another
        with_error(self._listener.shutdown, socket.SHUT_RDWR)
        self._accepting.join()
        for one in [*self._open, self._listener]:
            with_error(one.shutdown, socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._open += near, far
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while (data := source.recv(65536)) and not self._is_cut:
                target.sendall(data)
        except OSError:
            pass
        with_error(target.shutdown, socket.SHUT_WR)


def with_error(call: Any, *arguments: Any) -> None:
    """Call what may find its socket closed."""
    try:
        call(*arguments)
    except OSError:
        return


@pytest.mark.usefixtures("slow_steps")
def test_a_lost_connection_is_told_and_what_came_stays(context: Any, site: Site) -> None:
    wire = Wire(int(site.url.rsplit(":", 1)[1]))
    with opened(context, wire.url, 0) as page:
        set_sampling(page, max_tokens=4000)
        ask(page, "Go on for ever.")
        expect(page.locator(".answer .text")).not_to_be_empty()
        wire.cut()
        failure = page.locator(".failure")
        expect(failure).to_contain_text("The connection to the server was lost")
        expect(failure).to_contain_text("broke off")
        expect(page.locator(".answer .text")).not_to_be_empty()
        expect(page.locator("#warning")).to_have_text("The server cannot be reached.")
        failure.get_by_role("button", name="Retry").click()
        expect(failure).to_contain_text("No answer came.")
        site.wait_until_running(0)


def test_a_stream_that_ends_without_saying_so_is_told(page: Any) -> None:
    """As of a server in between that gives up, and closes in order."""
    event = 'data: {"choices": [{"index": 0, "delta": {"content": "Half of"}}]}\n\n'
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=event, content_type="text/event-stream"),
    )
    ask(page, "Tell me all.")
    expect(page.locator(".failure")).to_contain_text("broke off before its end")
    assert finish(page) == "Half of"


def test_retry_waits_as_long_as_the_server_asks(page: Any, watch: Watch) -> None:
    watch.expected_statuses.add(429)
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=429, headers={"Retry-After": "5"}, json={"error": {"message": "Full."}}
        ),
    )
    ask(page, "Hello?")
    retry = page.locator(".failure").get_by_role("button")
    expect(retry).to_have_text(re.compile(r"Retry in \d s"))
    expect(retry).to_be_disabled()
    expect(retry).to_have_text("Retry")
    expect(retry).to_be_enabled()
