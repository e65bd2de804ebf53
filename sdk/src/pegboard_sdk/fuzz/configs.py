"""Configs and overrides with something wrong with them."""

from __future__ import annotations

import random
from itertools import pairwise

BASE = """extends: default
name: run-${seed}
seed: 3
output: runs/x
model: {path: model, dtype: float32}
data: {use: jsonl, path: rows.jsonl, format: {use: chat, learn: last}, shuffle: false}
batch: {size: 2, length: 64, accumulate: 2}
optimizer: {use: adamw, lr: 1.0e-3, betas: [0.9, 0.95]}
schedule: {use: cosine, warmup: 0.1}
validation: {every: 10}
loggers: [jsonl]
"""
VALUES = (
    *(
        "null",
        "true",
        "~",
        "-1",
        "0",
        "1e999",
        "-.inf",
        ".nan",
        "99999999999999999999999",
        "0x1F",
        "1_000",
        "2001-01-01",
    ),
    *("''", '"', "[", "]", "{", "}", "[]", "{}", "[1, [2, [3]]]", "{a: {b: {c: d}}}", "???", "default", "./other.yaml"),
    *(
        "${seed}",
        "${nowhere}",
        "${.}",
        "${..seed}",
        "${output}/${output}",
        "${",
        "${${seed}}",
        "${oc.env:HOME}",
        "${name}",
    ),
    *("!!python/object:os.system x", "!!binary AAAA", "!!set {a}", "&a [*a]", "*a", "<<: *a", "%TAG", "---", "..."),
    *("é日本\u2028", "\x00", "\ufeff", "\t", "# no", "|", ">", "a: b: c", "? [a]"),
)
KEYS = (
    *("extends", "plugins", "plugins.disabled", "model", "model.path", "data", "data.use", "data.format.use", "model."),
    *(
        "optimizer.lr",
        "optimizer.use",
        "loggers",
        "loggers.0",
        "batch",
        "seed",
        "adapter",
        "adapter.use",
        "adapter.rank",
    ),
    *("nothing", "", ".", "a.b.c.d", "__class__"),
)


def _laughs() -> str:
    """Aliases of aliases: a few lines that stand for 8 ** 9 values."""
    rest = (f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefghi"))
    return "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(rest)


def _references() -> str:
    """References to references: a text of 3 ** 14 letters."""
    return "".join(f"{a}: ${{{b}}}${{{b}}}${{{b}}}\n" for a, b in pairwise("abcdefghijklmno")) + "o: xxxxxxxx\n"


BOMBS = (
    _laughs(),
    _references(),
    "name: " + "[" * 3000,
    "name: " + "[" * 3000 + "]" * 3000,
    "name: " + "{a: " * 600 + "1" + "}" * 600,
    "name: ${a}\na: ${b}\nb: ${a}\n",
    "extends: ./config.yaml\n",
    "extends: [default, default, full, lora, dora, default]\n",
    "name: " + "x" * 200_000 + "\n",
    "? " * 500 + "\n",
)


def config_text(source: random.Random) -> bytes:
    """Return a config file."""
    if source.random() < 0.1:
        text = source.choice(BOMBS) + (BASE if source.random() < 0.5 else "")
    else:
        lines = BASE.splitlines(keepends=True)
        for _ in range(source.choice((1, 1, 2, 3, 6))):
            _spoil(lines, source)
        text = "".join(lines)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if source.random() < 0.15 and data:
        for _ in range(source.randint(1, 3)):
            data[source.randrange(len(data))] = source.randrange(256)
    return bytes(data)


def overrides(source: random.Random) -> list[str]:
    """Return arguments as a user may type them."""
    return [_override(source) for _ in range(source.choice((0, 0, 1, 1, 2, 4)))]


def _override(source: random.Random) -> str:
    key, value = source.choice(KEYS), source.choice(VALUES)
    return source.choice(
        (f"{key}={value}", f"{key}={value}", f"~{key}", key, f"{key}={value}={value}", f"={value}", f"{key}.{value}=1")
    )


def _spoil(lines: list[str], source: random.Random) -> None:
    at = source.randrange(len(lines)) if lines else 0
    kind = source.randrange(7)
    if kind == 0 or not lines:
        lines.insert(at, f"{source.choice(KEYS)}: {source.choice(VALUES)}\n")
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines.insert(at, lines[source.randrange(len(lines))])
    elif kind == 3:
        lines[at] = " " * source.choice((1, 2, 8)) + lines[at]
    else:
        key = lines[at].partition(":")[0]
        inner = f"{{{source.choice(KEYS)}: {source.choice(VALUES)}}}" if kind == 4 else source.choice(VALUES)
        lines[at] = f"{key}: {inner}\n"
