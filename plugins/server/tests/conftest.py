"""A server around the engine `echo`, which is a plugin in a temporary place, and around the real engine with the tiny model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pegboard.interfaces.engine import Engine
from pegboard.plugins.load import Registry
from pegboard_sdk.site import Site
from pegboard_sdk.toys.folder import SMALL, write_folder
from pegboard_sdk.toys.tokenizer import TinyTokenizer
from pegboard_server.app import create_admin_app, create_app
from pegboard_server.options import ServerOptions
from pegboard_server.served import Served
from pegboard_server.serving import Address, Door, bind, make_served, running

DISTS = Path(__file__).parent / "dists"

Start = Callable[..., Served]


class Tokenizer(TinyTokenizer):
    """The tiny tokenizer with tools, which it writes as a first turn."""

    def chat(self, messages: Any, *, tools: Any = None, variables: Any = None, **rest: Any) -> list[int]:
        head = f"tools\n{json.dumps(list(tools))}\n".encode() if tools else b""
        head += f"variables\n{json.dumps(variables)}\n".encode() if variables else b""
        return [*head, *super().chat(messages, **rest)]


@pytest.fixture
def site(plugin_site: Site) -> Site:
    modules = {f"echo_engine.{path.stem}": path.read_text() for path in (DISTS / "echo_engine").glob("*.py")}
    plugin_site.add("echo-engine", {("engine", "echo"): "echo_engine.plugin:SPEC"}, modules)
    return plugin_site


@pytest.fixture
def start(site: Site) -> Start:
    """Return a function that makes a server's inside. engine: options of `echo`; the rest are options of the server."""

    def make(engine: dict[str, Any] | None = None, **options: Any) -> Served:
        registry = Registry.discover()
        made: Engine = registry.create("engine", {"use": "echo", **(engine or {})})
        tokenizer = Tokenizer()
        made.load(None, tokenizer, registry)  # type: ignore[arg-type]
        options.setdefault("names", ("echo", "other"))
        return make_served(registry, made, tokenizer, ServerOptions(**options))

    return make


@pytest.fixture
def open_client(start: Start) -> Iterator[Callable[..., TestClient]]:
    """Return a function that makes a client of a server in this process; options as for `start`."""
    opened: list[TestClient] = []

    def make(*args: Any, **options: Any) -> TestClient:
        served = start(*args, **options)
        client = TestClient(create_app(served), base_url="http://localhost")
        client.served = served  # type: ignore[attr-defined]
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__()
        assert client.served.loop.num_open == 0  # type: ignore[attr-defined]


@pytest.fixture
def client(open_client: Callable[..., TestClient]) -> TestClient:
    return open_client()


@contextmanager
def listening(served: Served, *, admin: bool = False, address: Address | None = None) -> Iterator[Any]:
    """Serve on a free port from a thread; gives its URL, with `admin` a pair of URLs."""
    urls: list[str] = []
    where = address or Address(port=0)
    up, down = threading.Event(), threading.Event()
    apps = [create_app(served), *([create_admin_app(served)] if admin else [])]
    doors = [Door(app, where, bind(where)) for app in apps]

    async def run() -> None:
        async with running(served, *doors) as found:
            urls.extend(found)
            up.set()
            await asyncio.to_thread(down.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert up.wait(300)
        yield urls if admin else urls[0]
    finally:
        down.set()
        thread.join(300)
        assert not thread.is_alive()
    assert served.loop.num_open == 0
    assert served.admission.inside == 0


@pytest.fixture
def listen() -> Callable[..., Any]:
    """Return a context manager that serves what it is given on a free port, and gives the URL."""
    return listening


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a llama with random weights, a tokenizer of bytes and a chat template."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL, "eos_token_id": 0}
    return write_folder(tmp_path_factory.mktemp("models") / "toy", config)
