"""Grammars of requests: compiled by a plugin off the step thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pegboard.errors import ConfigError, PegboardError
from pegboard_engine.request import Request
from pegboard_engine.table import Table

if TYPE_CHECKING:
    from pegboard.interfaces.grammar import CompiledGrammar, GrammarBackend
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry
    from pegboard.types import GrammarSpec

_WORKERS = 2


def allowed_ids(
    table: Table, slots: np.ndarray, vocab_size: int
) -> tuple[dict[int, np.ndarray], list[tuple[Request, Exception]]]:
    """Return which ids the grammars of `slots` [M] allow next, by row: [ceil(V / 32)] int32; and the requests whose grammar raised.

    A row of those stays in the step, and nobody will read its result.
    """
    masks: dict[int, np.ndarray] = {}
    failed: list[tuple[Request, Exception]] = []
    for row in np.flatnonzero(table.sync[slots]).tolist():
        request = table.request(slots[row])
        if request.matcher is None:
            continue
        mask = np.empty(-(-vocab_size // 32), dtype=np.int32)
        try:
            request.matcher.fill(mask)
        except Exception as error:
            failed.append((request, error))
        else:
            masks[row] = mask
    return masks, failed


class Grammars:
    """Compiles what requests ask for and tells which are ready. The plugin is loaded with the first grammar.

    wake: called from a worker when something is ready.
    """

    def __init__(self, registry: Registry, tokenizer: Tokenizer, vocab_size: int, name: str, wake: Callable[[], None]):
        if name == "auto" and not registry.candidates("grammar"):
            raise ConfigError("a grammar needs a plugin of kind grammar", fix="pip install pegboard-grammar")
        self._backend: GrammarBackend = (
            registry.create("grammar", name)
            if name != "auto"
            else registry.create("grammar", registry.auto("grammar").name)
        )
        self._prepare = (tokenizer, vocab_size)
        self._prepared = False
        self._lock = threading.Lock()
        self._wake = wake
        self._pool = ThreadPoolExecutor(_WORKERS, "grammar")
        self._waiting: dict[Request, Future[CompiledGrammar]] = {}

    def start(self, request: Request, spec: GrammarSpec) -> None:
        """Begin to compile the grammar of a request."""
        future = self._pool.submit(self._compile, spec)
        self._waiting[request] = future
        future.add_done_callback(lambda _: self._wake())

    def drop(self, request: Request) -> None:
        """Forget a request that ended while it waited."""
        future = self._waiting.pop(request, None)
        if future is not None:
            future.cancel()

    def ready(self) -> list[tuple[Request, str | None, bool]]:
        """Return the requests whose grammar is compiled, each with a matcher now, or with what is wrong and whether that is the
        grammar itself.
        """
        done = [request for request, future in self._waiting.items() if future.done()]
        return [(request, *self._take(request)) for request in done]

    def close(self) -> None:
        """Stop the workers. What is being compiled is not waited for."""
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, spec: GrammarSpec) -> CompiledGrammar:
        with self._lock:
            if not self._prepared:
                self._backend.load(*self._prepare)
                self._prepared = True
        return self._backend.compile(spec)

    def _take(self, request: Request) -> tuple[str | None, bool]:
        try:
            request.matcher = self._waiting.pop(request).result().matcher()
        except PegboardError as error:
            return f"the grammar cannot be used: {error.message}", True
        except Exception as error:
            return f"the grammar cannot be used: its compiler raised {type(error).__name__}", False
        return None, False
