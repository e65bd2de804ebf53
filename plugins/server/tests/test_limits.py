"""The cost model, back-pressure and rendering in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pegboard.types import GrammarSpec, Message
from pegboard_sdk.toys.tokenizer import TinyTokenizer
from pegboard_server import limits
from pegboard_server.admission import LONGEST, Admission
from pegboard_server.errors import ApiError
from pegboard_server.options import Limits
from pegboard_server.render import WORKERS, Renderer
from pegboard_tokenizers.template import ChatTemplate


@given(st.integers(0, 60), st.integers(0, 60))
def test_depth(depth: int, limit: int) -> None:
    value: Any = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    if depth <= limit:
        limits.check_depth(value, limit, "it")
    else:
        with pytest.raises(ApiError, match="deeper than"):
            limits.check_depth(value, limit, "it")


def test_depth_of_what_python_could_not_walk() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ApiError, match="deeper than 32"):
        limits.check_depth(value, 32, "it")
    while isinstance(value, list):  # taken apart here: Python frees it with recursion
        value = value.pop()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (GrammarSpec("json_schema", "{"), "not JSON"),
        (GrammarSpec("json_schema", "[" * 60_000), "not JSON"),
        (GrammarSpec("json_schema", "[]"), "JSON object"),
        (GrammarSpec("json_schema", '{"a":' * 40 + "1" + "}" * 40), "deeper than 32"),
        (GrammarSpec("regex", "a" * 70_000), "at most 65536"),
        (GrammarSpec("choice", "[]"), "at least one"),
        (GrammarSpec("choice", '["a", ""]'), "none that is empty"),
    ],
)
def test_grammars_that_are_refused(spec: GrammarSpec, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        limits.check_grammar(spec, Limits())


def tokens(asked: int | None, prompts: list[int], answers: int = 1, **fields: Any) -> list[int]:
    values = {"max_model_len": 100, "limit": Limits(tokens=1000), "default": None, **fields}
    return limits.answer_tokens(asked, prompts, answers, **values)


def test_length_of_answers() -> None:
    assert tokens(None, [30]) == [70]
    assert tokens(None, [30, 60], default=50) == [50, 40]
    assert tokens(70, [30]) == [70]
    assert tokens(None, [10], 20) == [49]  # (1000 - 10) // 20
    for asked, prompts, answers in ((71, [30], 1), (None, [100], 1), (1, [100], 1), (50, [10], 20), (10, [40] * 30, 1)):
        with pytest.raises(ApiError):
            tokens(asked, prompts, answers)


def test_admission() -> None:
    admission = Admission(10)
    with admission.admit(6):
        with admission.admit(4):
            with pytest.raises(ApiError) as caught, admission.admit(1):
                pass
            assert caught.value.status == 429
            assert 1 <= int(caught.value.headers["retry-after"]) <= LONGEST
        with admission.admit(4):
            assert admission.inside == 10
    assert admission.inside == 0
    with admission.admit(100):  # alone, since it never could otherwise
        assert admission.inside == 100
    with pytest.raises(ValueError, match="x"), admission.admit(1):
        raise ValueError("x")
    assert admission.inside == 0


def test_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pegboard_server.admission.time.monotonic", lambda: now[0])
    admission = Admission(4)
    for _ in range(10):  # one prompt in two seconds
        with admission.admit(1):
            now[0] += 2
    with admission.admit(4):
        waits = [admission.retry_after(count) for count in (1, 2, 4)]
        assert waits == sorted(waits)
        assert waits[0] == pytest.approx(2, abs=1)
        assert waits[2] == pytest.approx(8, abs=2)
        assert admission.retry_after(10**9) <= LONGEST


def test_a_full_server_says_when(open_client: Callable[..., TestClient]) -> None:
    client = open_client(limits=Limits(inside=2))
    release = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        answers.append(client.post("/v1/completions", json={"prompt": ["!wait", "!wait"]}).status_code)
        release.set()

    thread = threading.Thread(target=ask)
    thread.start()
    while client.served.admission.inside < 2:  # type: ignore[attr-defined]
        pass
    response = client.post("/v1/completions", json={"prompt": "say:a"})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "queue_full"
    client.served.loop._loop.call_soon_threadsafe(client.served.loop.end_all, "over")  # type: ignore[attr-defined]
    thread.join()
    assert answers == [503]
    assert client.post("/v1/completions", json={"prompt": "say:a"}).status_code == 200


class Slow(TinyTokenizer):
    """A template that takes until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def chat(self, messages: Any, **names: Any) -> list[int]:
        self.go.wait()
        return [1]


def test_templates_that_take_too_long() -> None:
    async def run() -> None:
        tokenizer = Slow()
        renderer = Renderer(tokenizer, 0.05)
        turn = [Message("user", "a")]
        try:
            for _ in range(WORKERS):
                with pytest.raises(ApiError, match="could not be rendered within") as caught:
                    await renderer.chat(turn, None)
                assert caught.value.status == 400
            # All threads are held: nobody waits behind them.
            with pytest.raises(ApiError, match="in the way") as caught:
                await renderer.chat(turn, None)
            assert caught.value.status == 503
            assert await renderer.encode("a") == [256, 97]
        finally:
            tokenizer.go.set()
        while renderer._late > 0:
            await asyncio.sleep(0.01)
        renderer._seconds = 600.0
        assert await renderer.chat(turn, None) == [1]
        renderer.close()

    asyncio.run(run())


class Endless(TinyTokenizer):
    """A template that would take until the end of the world."""

    def chat(self, messages: Any, **names: Any) -> list[int]:
        twice = "{{ f(n - 1) }}{{ f(n - 1) }}"
        source = "{% macro f(n) %}{% if n %}" + twice + "{% endif %}{% endmacro %}{{ f(90) }}"
        ChatTemplate(source, "the template").render({})
        return [1]


def test_a_template_without_end_gives_its_thread_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing but the sandbox's clock ends it, and that stands until somebody has waited in vain.
    now = [0.0]
    monkeypatch.setattr("pegboard_tokenizers.sandbox.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("pegboard_tokenizers.sandbox.MAX_STEPS", 10**12)

    async def run() -> None:
        renderer = Renderer(Endless(), 0.05)
        try:
            with pytest.raises(ApiError, match="could not be rendered within"):
                await renderer.chat([Message("user", "a")], None)
            assert renderer._late == 1
        finally:
            now[0] = 10.5
        while renderer._late > 0:
            await asyncio.sleep(0.01)
        renderer.close()

    asyncio.run(run())


def test_long_texts_are_encoded_elsewhere() -> None:
    async def run() -> None:
        renderer = Renderer(TinyTokenizer(), 600)
        assert len(await renderer.encode("a" * 5000)) == 5001
        assert await renderer.decode_all([[97] * 5000]) == ["a" * 5000]
        renderer.close()

    asyncio.run(run())
