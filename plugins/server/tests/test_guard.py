"""Keys, names, sizes and errors, for every route."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pegboard.errors import ConfigError
from pegboard_server.app import OPEN
from pegboard_server.guard import is_text
from pegboard_server.options import Limits
from pegboard_server.security import Keys, host_name, read_keys

KEY = "correct-horse-battery"
Open = Callable[..., TestClient]


def routes(client: TestClient) -> list[tuple[str, str]]:
    api = client.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    return [(method.upper(), path) for path, methods in api["paths"].items() for method in methods]


def test_every_route_but_the_open_ones_wants_a_key(open_client: Open) -> None:
    client = open_client(keys=(KEY, "another-key-of-ours"))
    found = [*routes(client), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("POST", "/"), ("POST", "/health")]
    assert len(found) > 12
    for method, path in found:
        response = client.request(method, path.replace("{model}", "echo"))
        if method == "GET" and path in OPEN:
            assert response.status_code in (200, 503)
            continue
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"
    for path in OPEN:
        assert client.get(path).status_code in (200, 503)


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        (f"Bearer {KEY}", 1),
        (f"bearer {KEY}", 1),
        ("Bearer second-key-here", 2),
        (KEY, None),
        ("Bearer ", None),
        (f"Bearer {KEY}x", None),
        (f"Bearer {KEY[:-1]}", None),
        (f"Basic {KEY}", None),
        (None, None),
    ],
)
def test_keys(header: str | None, admitted: int | None) -> None:
    keys = Keys([KEY, "second-key-here", KEY])
    assert keys.admit(None if header is None else header.encode()) == admitted
    assert Keys([]).admit(None) == 0


def test_keys_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-the-file\n\n")
    file.chmod(0o600)
    assert read_keys(("given-one-by-one",), str(file), "from-the-air, given-one-by-one") == (
        "given-one-by-one",
        "from-the-air",
        "from-the-file",
    )


@pytest.mark.parametrize("key", ["short", "with space in it", "ümlaut-in-it", "tab\tin-it-here"])
def test_keys_that_cannot_be_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="API key 1"):
        read_keys((key,), None)


@pytest.mark.skipif(os.name != "posix", reason="permissions of files are POSIX's")
def test_a_file_of_keys_that_all_may_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("from-the-file")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="read by every user"):
        read_keys((), str(file))
    file.chmod(0o600)
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys((), str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys((), str(tmp_path / "none"))


def test_names_that_a_browser_may_be_led_here_by(open_client: Open) -> None:
    client = open_client(hosts=("localhost", "::1"))
    assert client.get("/health").status_code == 200
    assert client.get("/health", headers={"host": "localhost:8000"}).status_code == 200
    assert client.get("/health", headers={"host": "[::1]:8000"}).status_code == 200
    response = client.get("/health", headers={"host": "evil.example:8000"})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "unknown_host"
    guarded = open_client(hosts=("localhost",), keys=(KEY,))
    assert guarded.get("/health", headers={"host": "evil.example"}).status_code == 200


def test_names_in_headers() -> None:
    assert [host_name(h) for h in (b"A.b:80", b"a.b", b"[::1]:80", b"[::1]", b"")] == ["a.b", "a.b", "::1", "::1", ""]


def test_other_origins(open_client: Open) -> None:
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in open_client().options("/v1/completions", headers=headers).headers
    client = open_client(origins=("https://page.example",), keys=(KEY,))
    found = client.options("/v1/completions", headers=headers)
    assert found.headers["access-control-allow-origin"] == "https://page.example"
    refused = client.post("/v1/completions", json={}, headers={"origin": "https://page.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    other = client.options("/v1/completions", headers={**headers, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_bodies_that_are_too_large(open_client: Open) -> None:
    client = open_client(limits=Limits(body_bytes=100))
    response = client.post("/v1/completions", json={"prompt": "a" * 200})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"

    def chunks() -> Any:
        for _ in range(10):
            yield b"a" * 50

    headers = {"content-type": "application/json"}
    assert client.post("/v1/completions", content=chunks(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "a", "n": true}',
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "stop": ["\\ud800"]}',
        b'{"\\ud800": 1, "prompt": "a"}',
    ],
)
def test_bodies_that_are_no_request(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_lone_surrogates_in_what_goes_to_templates(client: TestClient) -> None:
    body = b'{"messages": [{"role": "user", "content": "a", "x": "\\ud800"}]}'
    for content in (body, body.replace(b'"x"', b'"\\udfff"'), b'{"messages": [{"role": "\\ud800", "content": "a"}]}'):
        response = client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400)


def test_a_form_of_another_page_is_no_request(client: TestClient) -> None:
    body = json.dumps({"prompt": "say:a"})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/v1/completions", content=body, headers={"content-type": kind}).status_code == 400


def test_what_is_not_there(client: TestClient) -> None:
    response = client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
    response = client.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


def test_a_defect_tells_nothing_but_its_number(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    client.served.tokenizer.decode = None  # type: ignore[attr-defined]
    response = client.post("/detokenize", json={"tokens": [1]})
    assert response.status_code == 500
    error = response.json()["error"]
    assert "TypeError" not in response.text
    number = error["message"].rpartition(" ")[2]
    assert number in caplog.text
    assert "TypeError" in caplog.text


def test_every_answer_has_a_number_and_may_not_be_guessed_at(client: TestClient) -> None:
    numbers = {client.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(numbers) == 3
    assert client.get("/nowhere").headers["x-content-type-options"] == "nosniff"


@given(st.lists(st.sampled_from(["\\ud83d", "\\uDE00", "\\u0041", "\\\\", '\\"', "u", "d", "é", "\\udbff"])))
def test_halves_of_characters_are_found(parts: list[str]) -> None:
    body = ('["' + "".join(parts) + '"]').encode()
    try:
        json.loads(body)[0].encode()
    except UnicodeEncodeError:
        whole = False
    except ValueError:
        return
    else:
        whole = True
    assert is_text(body) is whole


def test_other_encodings_are_no_text() -> None:
    assert is_text('{"a": "é😀"}'.encode())
    for encoding in ("utf-16", "utf-16-le", "utf-32", "latin-1"):
        assert not is_text('{"a": "é"}'.encode(encoding))
    assert not is_text(b'"\xed\xa0\x80"')
