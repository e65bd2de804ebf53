"""From a model's name to a server that listens, and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import Engine
from pegboard.interfaces.tokenizer import Tokenizer
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_server.admission import Admission
from pegboard_server.answers import new_id
from pegboard_server.errors import ApiError
from pegboard_server.loop import EngineLoop, Job
from pegboard_server.metrics import Metrics
from pegboard_server.options import ServerOptions
from pegboard_server.parsing import Parsers
from pegboard_server.render import Renderer
from pegboard_server.served import Served

log = logging.getLogger("pegboard.server")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. port 0: any free one. certfile, keyfile: of TLS, PEM; ca: of the clients that may connect."""

    host: str = "127.0.0.1"
    port: int = 8000
    certfile: str | None = None
    keyfile: str | None = None
    ca: str | None = None


def load_engine(
    registry: Registry, model: str, *, engine: Mapping[str, Any], revision: str | None = None, **build: Any
) -> tuple[Engine, Tokenizer, Mapping[str, Any]]:
    """Return an engine with its model, the tokenizer, and the model's generation_config.json.

    engine: a choice of kind `engine`. build: options of `prepare_model`. Options are checked before the model is read.
    """
    made: Engine = registry.create("engine", engine)
    opened = open_any(registry, model, revision)
    tokenizer = opened.tokenizer(registry)
    built = opened.prepare(registry, **build)  # its weights are loaded where the steps run
    registry.hooks.call("model_built", role="engine", model=built.model)
    made.load(built, tokenizer, registry)
    return made, tokenizer, built.files.generation_config


def make_served(
    registry: Registry,
    engine: Engine,
    tokenizer: Tokenizer,
    options: ServerOptions,
    defaults: Mapping[str, Any] | None = None,
) -> Served:
    """Return what the routes work with, around a loaded engine."""
    metrics = Metrics()
    parsers = Parsers.choose(registry, tokenizer, tools=options.tool_parser, reasoning=options.reasoning_parser)
    return Served(
        loop=EngineLoop(engine, metrics),
        tokenizer=tokenizer,
        options=options,
        metrics=metrics,
        admission=Admission(options.limits.inside),
        renderer=Renderer(tokenizer, options.limits.template_seconds),
        parsers=parsers,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        defaults=defaults or {},
        adapters=dict(engine.adapters()),
    )


class Listener(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def bind(address: Address) -> socket.socket:
    """Return a socket at an address. Raises ConfigError when it cannot be had, or when its certificate cannot be used."""
    if address.certfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(address.certfile, address.keyfile)
            if address.ca is not None:
                ssl.create_default_context(cafile=address.ca)
        except OSError as error:
            files = ", ".join(filter(None, (address.certfile, address.keyfile, address.ca)))
            raise ConfigError(f"TLS cannot be had from {files}: {error}", fix="name PEM files that match") from error
    bound = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{address.host}:{address.port} cannot be listened at: {error.strerror or error}",
            fix="choose another --port",
        ) from error
    return bound


@dataclass(slots=True)
class Door:
    """An application that listens. bound: its socket."""

    app: ASGIApp
    address: Address
    bound: socket.socket

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.bound.getsockname()[:2]
        scheme = "http" if self.address.certfile is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def listener(self, *, lifespan: bool) -> Listener:
        """Return the server. lifespan: whether it starts and stops what it serves."""
        address = self.address
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            access_log=False,
            lifespan="on" if lifespan else "off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            ssl_certfile=address.certfile,
            ssl_keyfile=address.keyfile,
            ssl_ca_certs=address.ca,
            ssl_cert_reqs=ssl.CERT_REQUIRED if address.ca else ssl.CERT_NONE,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
        return Listener(config)


async def serve(served: Served, doors: Sequence[Door]) -> None:
    """Listen until a signal comes, then let streams end and stop. A second signal ends them at once.

    The first door starts and stops the engine's loop.
    """
    servers = [door.listener(lifespan=number == 0) for number, door in enumerate(doors)]
    stop = asyncio.Event()
    with _signals(stop, served):
        tasks = [asyncio.create_task(s.serve(sockets=[d.bound])) for s, d in zip(servers, doors, strict=True)]
        begin = asyncio.create_task(_begin(served, servers, doors))
        drained = asyncio.create_task(_drain(served, stop))
        await asyncio.wait([*tasks, drained], return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.should_exit = True
        for task in (drained, begin):
            task.cancel()
        await asyncio.gather(*tasks)
    log.info("stopped")


async def _begin(served: Served, servers: Sequence[Listener], doors: Sequence[Door]) -> None:
    while not all(server.started for server in servers):
        await asyncio.sleep(0.01)
    await warm_up(served)
    log.info("serving %s at %s", ", ".join(served.options.names), " and ".join(door.url for door in doors))


async def warm_up(served: Served) -> None:
    """Answer a short request, so that nobody waits for what is made at first use, and be ready."""
    began = time.perf_counter()
    ids = [min(served.vocab_size - 1, 1)] * min(16, served.max_model_len - 2)
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, detokenize=False)
    try:
        async with served.stream([Job(new_id("warm"), ids, params)]) as stream:
            async for output in stream:
                if output.finish_reason == "error":
                    log.error("the first request failed: %s", output.error)
                    return
    except ApiError as error:
        log.error("the first request failed: %s", error.message)
        return
    served.ready = True
    log.info("the first request took %.2f s", time.perf_counter() - began)


async def _drain(served: Served, stop: asyncio.Event) -> None:
    """Wait for the signal, then until nothing is open or the grace is over, and end what is left."""
    await stop.wait()
    served.draining = True
    end = time.monotonic() + served.options.grace
    count = served.loop.num_open
    log.info("stopping: %d requests are open, for %g s at most", count, served.options.grace)
    while served.loop.num_open and time.monotonic() < end and served.loop.alive:
        await asyncio.sleep(0.02)
    served.loop.end_all("the server is shutting down")


@contextlib.contextmanager
def _signals(stop: asyncio.Event, served: Served) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if stop.is_set():
            served.loop.end_all("the server is shutting down")
        stop.set()

    names = (signal.SIGINT, signal.SIGTERM)
    for name in names:
        loop.add_signal_handler(name, heard)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)


@contextlib.asynccontextmanager
async def running(served: Served, *doors: Door) -> AsyncIterator[list[str]]:
    """Serve inside the block, without signals, and give the URLs: for tests, and for servers within a larger program."""
    servers = [door.listener(lifespan=number == 0) for number, door in enumerate(doors)]
    tasks = [asyncio.create_task(s.serve(sockets=[d.bound])) for s, d in zip(servers, doors, strict=True)]
    try:
        await _begin(served, servers, doors)
        yield [door.url for door in doors]
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
