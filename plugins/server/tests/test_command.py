"""`peg serve` as a process, and what it says about options that make no sense."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from pegboard.errors import ConfigError
from pegboard_sdk.peg import Said
from pegboard_server.command import pairs, read_limits
from pegboard_server.options import Limits

Peg = Callable[..., Said]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run the command; gives the process, its URL, and the lines that it has logged."""
    command = [sys.executable, "-m", "pegboard", "serve", str(folder), "--port", "0", "--name", "toy", *options]
    command += ["--dtype", "float32", "--kv-memory", "4MB", "--set", "page_size=4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            lines.append(line.rstrip())
            if " at http" in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        ready.wait()
        found = re.search(r"https?://\S+:\d+", lines[-1])
        assert found, "\n".join(lines)
        yield process, found[0], lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        if process.stderr:
            process.stderr.close()


def test_a_signal_lets_streams_end_within_the_grace(folder: Path) -> None:
    # One answer after the other: all eight take far longer than a signal does.
    options = ("--grace", "0.5", "--max-model-len", "256", "--set", "max_num_seqs=1")
    with serving(folder, *options) as (process, url, lines):
        with httpx.Client(base_url=url, timeout=300) as client:
            assert client.get("/ready").status_code == 200
            body = {"prompt": "hello", "max_tokens": 240, "ignore_eos": True, "temperature": 1.0}
            ended: list[str] = []
            with client.stream("POST", "/v1/completions", json={**body, "stream": True, "n": 8}) as response:
                stream = response.iter_lines()
                next(stream)
                process.send_signal(signal.SIGTERM)
                ended = [line for line in stream if line.startswith("data: ")]
        assert process.wait(300) == 0
    assert ended[-1] == "data: [DONE]"
    last = json.loads(ended[-2].removeprefix("data: "))
    # Either all of it came within the grace, or the stream says why it did not.
    assert "choices" in last or last["error"]["code"] == "service_unavailable"
    assert any(line.startswith("stopping: 1 requests are open") for line in lines)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_keys_and_the_admin_listener(folder: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1".split()
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    options = ("--certfile", str(cert), "--keyfile", str(key), "--api-key", "key-of-the-test", "--admin-port", "0")
    trusted = ssl.create_default_context(cafile=str(cert))
    with serving(folder, *options) as (process, url, lines):
        urls = re.findall(r"https://\S+:\d+", lines[-1])
        assert len(urls) == 2
        with httpx.Client(verify=trusted, headers={"authorization": "Bearer key-of-the-test"}, timeout=300) as client:
            assert client.get(f"{urls[0]}/v1/models").json()["data"][0]["id"] == "toy"
            assert client.get(f"{urls[1]}/adapters").json() == {"adapters": {}}
            assert client.get(f"{urls[0]}/v1/models", headers={"authorization": ""}).status_code == 401
        with pytest.raises(httpx.ConnectError), httpx.Client(timeout=300) as stranger:
            stranger.get(f"{url}/health")
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--api-key", "short"], "API key 1 has 5 characters"),
        (["--api-key-file", "/nowhere"], "the file of keys /nowhere cannot be read"),
        (["--certfile", "a.pem"], "TLS needs --certfile and --keyfile together"),
        (["--certfile", "/nowhere.pem", "--keyfile", "/nowhere.pem"], "TLS cannot be had from /nowhere.pem"),
        (["--allow-origin", "*"], "every web page may call"),
        (["--limit", "answer=3"], "there is no limit 'answer' (did you mean 'answers'?)"),
        (["--limit", "answers=0"], "the limit answers is 0"),
        (["--limit", "answers"], "--limit 'answers' is no setting"),
        (["--admin-port", "0", "--admin-host", "0.0.0.0"], "could change what is served"),
        (["--score-labels", "yes"], "--score-labels is 'yes'"),
        (["--score-template", "/nowhere"], "--score-template /nowhere cannot be read"),
        (["--host", "203.0.113.7"], "203.0.113.7:8000 cannot be listened at"),
        (["--set", "pages=3"], "pages"),
        (["--engine", "steam"], "no installed plugin offers engine 'steam'"),
    ],
)
def test_options_that_make_no_sense(peg: Peg, folder: Path, options: list[str], words: str) -> None:
    port = [] if "--host" in options else ["--port", "0"]
    said = peg("serve", folder, *port, *options)
    assert said.status == 2
    assert words in said.err
    assert "fix: " in said.err


def test_a_port_that_is_taken_is_told_before_the_model_is_read(peg: Peg) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = peg("serve", "/no/model/here", "--port", other.getsockname()[1])
    assert said.status == 2
    assert "cannot be listened at" in said.err


def test_limits() -> None:
    assert read_limits(("answers=3", "body_seconds=1.5")) == Limits(answers=3, body_seconds=1.5)
    for text in ("answers=1.5", "answers=true", "answers=many"):
        with pytest.raises(ConfigError):
            read_limits((text,))
    found: dict[str, Any] = pairs("--set", ("a=1", "b=x=y", 'c="1"'))
    assert found == {"a": 1, "b": "x=y", "c": "1"}
