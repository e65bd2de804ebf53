"""Perplexity of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pegboard.errors import ConfigError, DataError
from pegboard_evaluate.scoring import Pair, score

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of a text: its tokens that were scored, their summed -log p in nats, and the words and bytes of the text."""

    nats: float
    tokens: int
    words: int
    bytes: int

    def figures(self) -> dict[str, float]:
        """Return exp of the mean by token and by word (the text divided at spaces), and bits a byte (-log2 p of the text / its bytes)."""
        return {
            "perplexity": math.exp(self.nats / self.tokens),
            "word_perplexity": _exp(self.nats / max(self.words, 1)),
            "bits_per_byte": self.nats / math.log(2) / max(self.bytes, 1),
            "tokens": self.tokens,
        }


def windows(tokens: Sequence[int], prefix: int | None, length: int, stride: int) -> Iterator[Pair]:
    """Yield (context, what is scored) so that every token is scored once, after as many as fit into `length` with it.

    stride: tokens that a window scores; equal to `length` no context is read twice, smaller it costs more and gives each token more
    context. prefix: what the first token stands after; None leaves the first token unscored.
    """
    whole = [*([] if prefix is None else [prefix]), *tokens]
    scored = 1
    while scored < len(whole):
        # Without a token in front the first window, like any other of full stride, holds one more than it scores.
        end = min(scored + min(stride, length - 1), len(whole))
        yield whole[max(end - length, 0) : scored], whole[scored:end]
        scored = end


def perplexity(
    llm: LLM,
    text: str,
    *,
    length: int | None = None,
    stride: int | None = None,
    done: Callable[[int, int], None] = lambda count, total: None,
) -> Perplexity:
    """Measure a text. length: tokens of a window, None for the engine's context; stride: see `windows`, None for `length` - 1.

    done: told how many windows of how many are scored. Raises ConfigError for lengths that do not fit, DataError for an empty text.
    """
    most = llm.engine.max_model_len
    length = length or most
    stride = stride or length - 1
    if not 2 <= length <= most:
        raise ConfigError(
            f"a window of {length} tokens", fix=f"choose from 2 to {most}, the longest that the engine takes"
        )
    if not 1 <= stride < length:
        raise ConfigError(f"a stride of {stride} tokens", fix=f"choose from 1 to {length - 1}, below the window")
    tokens = llm.tokenizer.encode(text, special=False)
    pairs = list(windows(tokens, llm.tokenizer.bos_id, length, stride))
    if not pairs:
        raise DataError("the text has no token to score", fix="give a longer one")
    counted = 0

    def more(count: int) -> None:
        nonlocal counted
        counted += count
        done(counted, len(pairs))

    found = score(llm, pairs, more)
    words, size = len(text.split()), len(text.encode())
    return Perplexity(-sum(one.logprob for one in found), sum(one.tokens for one in found), words, size)


def read_text(path: Path) -> str:
    """Return a file's text. Raises DataError when it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start})", fix="save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="check the path") from None


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
