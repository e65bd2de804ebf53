"""Compiling: within limits, off the step thread, once for each grammar."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from pegboard.errors import DataError
from pegboard.interfaces.grammar import GrammarBackend
from pegboard_grammar.lark import NAMES, lark_of
from pegboard_grammar.matcher import Compiled
from pegboard_grammar.options import Options
from pegboard_grammar.words import refusal

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.types import GrammarSpec
    from pegboard_grammar.vocabulary import Vocabulary

STACK = 64 << 20
"""Bytes of stack of a compiling thread: llguidance follows chains of references on it."""

_stack_size = threading.Lock()


class LlguidanceBackend(GrammarBackend):
    """Compiles with llguidance. Compilations that take too long are left to end by llguidance's own limits."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._vocabulary: Vocabulary | None = None
        self._free = threading.BoundedSemaphore(options.threads)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, bytes], Compiled] = OrderedDict()

    def load(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """Read the tokenizer's vocabulary. Raises ConfigError or DataError where it does not suit grammars."""
        from pegboard_grammar.vocabulary import read_vocabulary

        self._vocabulary = read_vocabulary(tokenizer, vocab_size)

    def compile(self, spec: GrammarSpec) -> Compiled:
        """Return the compiled grammar, from the cache where it is there."""
        if self._vocabulary is None:
            raise RuntimeError("compile() before load()")
        key = spec.kind, hashlib.blake2b(spec.value.encode("utf-8", "surrogatepass")).digest()
        return self._cached(key) or self._compile(key, spec, self._vocabulary)

    def _cached(self, key: tuple[str, bytes]) -> Compiled | None:
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
            return self._cache.get(key)

    def _compile(self, key: tuple[str, bytes], spec: GrammarSpec, vocabulary: Vocabulary) -> Compiled:
        text = lark_of(spec, self._options)
        what, deadline = NAMES[spec.kind], time.monotonic() + self._options.seconds
        if not self._free.acquire(timeout=self._options.seconds):
            raise self._late(what)
        # Whoever waited may find that another thread compiled the same.
        if (found := self._cached(key)) is not None:
            self._free.release()
            return found
        done: list[Compiled | DataError] = []
        try:
            thread = _deep_thread(lambda: self._run(done, key, text, vocabulary))
        except RuntimeError:  # the system has no thread left
            self._free.release()
            raise
        thread.join(max(0.0, deadline - time.monotonic()))
        if not done:
            raise self._late(what)
        if isinstance(done[0], DataError):
            raise done[0]
        return done[0]

    def _run(self, done: list[Compiled | DataError], key: tuple[str, bytes], text: str, vocabulary: Vocabulary) -> None:
        """Compile on a thread of its own and keep the result, also where nobody waits for it any longer."""
        kind, what = key[0], NAMES[key[0]]
        try:
            compiled = self._build(text, what, kind, vocabulary)
            with self._lock:
                self._cache[key] = compiled
                while len(self._cache) > self._options.cached:
                    self._cache.popitem(last=False)
            done.append(compiled)
        except DataError as error:
            done.append(error)
        except BaseException as error:  # a panic of the library is none of class Exception
            done.append(refusal(what, str(error), kind))
        finally:
            self._free.release()

    def _build(self, text: str, what: str, kind: str, vocabulary: Vocabulary) -> Compiled:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=self._options.lexer_fuel,
            step_lexer_fuel=self._options.step_fuel,
            step_max_items=self._options.step_items,
            max_lexer_states=self._options.lexer_states,
            max_grammar_size=self._options.grammar_size,
            verbose_errors=False,
        )
        start = LLMatcher(vocabulary.tree, LLMatcher.grammar_from_lark(text), log_level=0, limits=limits)
        if not start.is_error():
            # What the first step needs is built here, once; and a grammar that nothing matches shows itself.
            first = start.compute_bitmask()
            if not start.is_error() and first == vocabulary.end_only and not start.is_accepting():
                raise refusal(what, "NoExtension", kind)
        if start.is_error():
            raise refusal(what, start.get_error(), kind)
        return Compiled(start, vocabulary, what, kind)

    def _late(self, what: str) -> DataError:
        return DataError(
            f"{what} was not compiled within {self._options.seconds:g} seconds",
            fix="use fewer or simpler parts; or try again, when fewer grammars are compiled at once",
        )


def _deep_thread(run: Callable[[], None]) -> threading.Thread:
    """Start a thread with a deep stack. The size is a setting of the process, so it is set back at once."""
    with _stack_size:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=run, name="pegboard-grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    return thread
