"""A server around the engine `echo`, which is a plugin in a temporary place, and around the real engine with the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pegboard.interfaces.engine import Engine
from pegboard.plugins.load import Registry
from pegboard_sdk.site import Site
from pegboard_sdk.toys.tokenizer import TinyTokenizer
from pegboard_server.app import create_app
from pegboard_server.options import ServerOptions
from pegboard_server.served import Served
from pegboard_server.serving import make_served

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
