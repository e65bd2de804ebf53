"""The chat page in a real Chromium without a window, in front of a server on a real port."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from pegboard_server.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Start = Callable[..., Served]
Listen = Callable[..., AbstractContextManager[Any]]
KEY = "key-of-the-test"
UNAUTHORIZED = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("PEGBOARD_CHROMIUM") or shutil.which("chromium")
    assert program, "no Chromium: install it (apt-get install chromium), or name it in PEGBOARD_CHROMIUM"
    with sync_playwright() as driver:
        # Its own sandbox needs rights that root in a container lacks; it sees nothing but this server.
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        launched = driver.chromium.launch(executable_path=program, args=[*flags, "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a context of its own. said: what its console was told, what nobody caught, and what it alerts."""
    context = browser.new_context()
    made = context.new_page()
    made.set_default_timeout(300_000)
    said: list[str] = []
    made.on("console", lambda message: said.append(message.text))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("dialog", lambda dialog: (said.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    made.said = said  # type: ignore[attr-defined]
    yield made
    context.close()


def said(page: Page) -> list[str]:
    return page.said  # type: ignore[attr-defined, no-any-return]


def send(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def answered(page: Page) -> str:
    """Wait until an answer has ended and return the last one's text."""
    page.wait_for_selector("#send:not([hidden])")
    return page.locator(".assistant .words").last.inner_text()


def bodies(served: Served) -> list[bytes]:
    """Return the prompts that the engine was given, without the one that warmed it up."""
    engine: Any = served.loop._engine
    return [bytes(i for i in ids if i < 256) for _, ids, *_ in engine.seen[1:]]


def test_a_conversation(start: Start, listen: Listen, page: Page) -> None:
    served = start({"max_model_len": 1024})
    with listen(served) as url:
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        assert page.locator("#model option").all_inner_texts() == ["echo", "other"]
        assert page.locator("#empty").is_visible()
        page.click("summary")
        page.fill("#system", "be brief")
        page.fill("#longest", "40")
        page.fill("#temperature", "0")
        page.select_option("#model", "other")
        send(page, "say:hello there")
        assert answered(page) == "hello there"
        assert page.locator("#status").inner_text().startswith("12 tokens, ")
        send(page, "say:again")
        assert answered(page) == "again"
        assert not page.locator("#empty").is_visible()
        # The conversation goes along, the system message first.
        assert bodies(served)[1].startswith(b"system\nbe brief")
        assert b"hello there" in bodies(served)[1].partition(b"assistant\n")[2]
        engine: Any = served.loop._engine
        assert (engine.seen[-1][2].max_tokens, engine.seen[-1][2].temperature) == (40, 0)
        assert engine.seen[-1][3].labels["model"] == "other"
        page.click("#new")
        send(page, "say:fresh")
        assert answered(page) == "fresh"
        assert b"hello there" not in bodies(served)[2]
        assert page.locator(".turn").count() == 2
        assert said(page) == []


def test_it_asks_for_the_key_and_sends_it(start: Start, listen: Listen, page: Page) -> None:
    with listen(start(keys=(KEY,))) as url:
        page.goto(url)
        page.wait_for_selector("#ask[open]")
        assert not page.locator("#refused").is_visible()
        page.fill("#key", "another-key")
        page.press("#key", "Enter")
        page.wait_for_selector("#refused:not([hidden])")
        assert page.locator("#refused").inner_text() == "The server does not know this key."
        page.press("#key", "Escape")
        page.locator("#status", has_text="The server answers nobody without a key.").wait_for()
        assert not page.locator("#ask").is_visible()
        send(page, "say:hello")
        page.wait_for_selector("#ask[open]")
        page.fill("#key", KEY)
        with page.expect_request("**/v1/chat/completions") as request:
            page.press("#key", "Enter")
        assert request.value.headers["authorization"] == f"Bearer {KEY}"
        assert answered(page) == "hello"
        page.wait_for_selector("#model option", state="attached")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert not page.locator("#ask").is_visible()
        assert set(said(page)) == {UNAUTHORIZED}  # which a browser says of itself
        # Nowhere but in this tab.
        assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", url + "/"]


def test_pieces_come_while_it_answers_and_it_can_be_stopped(start: Start, listen: Listen, page: Page) -> None:
    served = start({"pace": 0.01, "max_model_len": 100_000})
    with listen(served) as url:
        page.goto(url)
        send(page, "!long")
        page.wait_for_selector("#stop:not([hidden])")
        page.locator(".words", has_text="!long").wait_for()
        assert served.loop.num_open == 1
        page.click("#stop")
        assert "!long" in answered(page)
        assert page.locator("#status").inner_text() == "stopped"
        page.click("#new")
        send(page, "say:and on")
        assert answered(page) == "and on"
        # Another conversation begins while the one before still answers.
        send(page, "!long")
        page.wait_for_selector("#stop:not([hidden])")
        page.click("#new")
        send(page, "say:new")
        assert answered(page) == "new"
        assert page.locator(".turn").count() == 2
        assert b"!long" not in bodies(served)[-1]
        assert said(page) == []


def test_what_a_model_says_is_text(start: Start, listen: Listen, page: Page) -> None:
    attack = "<img src=x onerror=alert(1)><script>document.title='owned'</script><b>bold</b>"
    with listen(start({"max_model_len": 1024})) as url:
        page.goto(url)
        for text in (attack, f"`{attack}`", "[click](javascript:alert(1))"):
            send(page, "say:" + text)
            assert answered(page) == text.strip("`")
        assert page.locator(".turn :is(img, script, b, a)").count() == 0
        assert page.locator(".turn code").inner_text() == attack
        assert page.title() == "Pegboard"
        assert said(page) == []


def test_errors_are_shown(start: Start, listen: Listen, page: Page) -> None:
    served = start({"pace": 0.01, "max_model_len": 100_000})
    with listen(served) as url:
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        send(page, "!fail")
        page.wait_for_selector("#send:not([hidden])")
        assert "its log has the reason" in page.locator(".assistant .error").inner_text()
        assert page.input_value("#text") == "!fail"
        page.fill("#text", "")
        send(page, "say:better")
        assert answered(page) == "better"
        assert b"!fail" not in bodies(served)[-1]
        # After its first pieces an answer fails with an event.
        send(page, "!long")
        page.wait_for_selector(".turn:last-child .words:not(:empty)")
        served.loop._loop.call_soon_threadsafe(served.loop.end_all, "the server is shutting down")
        page.wait_for_selector("#send:not([hidden])")
        assert page.locator(".assistant .error").last.inner_text() == "the server is shutting down"
        assert all("500" in line for line in said(page))
    send(page, "is anybody there?")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".assistant .error").last.inner_text() == "The server cannot be reached."


def test_the_page_of_endpoints(start: Start, listen: Listen, page: Page) -> None:
    with listen(start()) as url:
        api = json.loads(page.request.get(f"{url}/openapi.json").text())
        page.goto(url + "/docs")
        page.wait_for_selector("#routes tr")
        assert page.locator("#routes tr").count() == sum(map(len, api["paths"].values()))
        assert said(page) == []
