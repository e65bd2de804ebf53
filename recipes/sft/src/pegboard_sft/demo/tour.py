"""The tour: ask, tune, ask again."""

from __future__ import annotations

import importlib.util
import os
import resource
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from pegboard.errors import PluginError
from pegboard_sft.demo.answers import Wish, ask, count_right, is_right, read_wishes

TOKENS = 40_000
TOKENS_A_STEP = 225
"""What the examples of this data set leave of 256 when they are packed."""
DATA = Path(__file__).parent
NEEDED = ("engine", "gguf", "llama", "tokenizers", "cpu", "sdpa")
SHOWN = (
    "The carpet in the bathroom is full of dust.",
    "The baby is falling asleep in the nursery.",
    "Sweet dreams in the den.",
)
"""Held-out wishes whose answers are printed: a small model learns most of them, and stumbles over the last more often than not."""


def tour(model: str, tokens: int) -> None:
    """Print what the model answers, tune it on about `tokens` tokens, and print what it answers then."""
    check_installed()
    began = time.monotonic()
    wishes = read_wishes(DATA / "held_out.jsonl")
    rows = len((DATA / "train.jsonl").read_text(encoding="utf-8").splitlines())
    say(f"A small model learns to run a house: {Path(model).name}")
    say(
        f"It hears what people say at home and answers with the command that they mean. It learns from {rows} rows; the"
    )
    say(f"{len(wishes)} wishes that it is asked are not among them.")

    say("\n1. Before")
    before = ask(model, wishes)
    show(before, wishes)

    folder = free_folder(Path("runs/demo"))
    say(f"\n2. Tuning with LoRA on about {tokens:,} tokens, in {folder}")
    train(model, folder, max(1, round(tokens / TOKENS_A_STEP)))

    say("\n3. After")
    after = ask(str(folder / "final"), wishes)
    show(after, wishes)
    first, last = count_right(before, wishes), count_right(after, wishes)
    say(f"\n{first} of {len(wishes)} commands were right before, {last} are now.")
    say(f"That took {time.monotonic() - began:.0f} s and at most {peak_memory() / 1e9:.1f} GB of memory.")
    farewell(model, folder)


def check_installed() -> None:
    """Raise PluginError naming the distributions that the tour needs and that are not there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(f"pegboard_{name}") is None]
    if missing:
        listed = " ".join(f"pegboard-{name}" for name in missing)
        raise PluginError(f"the demo needs {listed.replace(' ', ', ')}", fix=f"pip install {listed}")


def train(model: str, folder: Path, steps: int) -> None:
    """Do what `peg run sft --config demo …` does."""
    from pegboard.config import load_config
    from pegboard.config.resolve import recipe_spec
    from pegboard.plugins.load import Registry

    registry = Registry.discover()
    config = load_config(registry, "sft", "demo", overrides(model, folder, steps))
    registry.load("recipe", "sft")().run(recipe_spec(registry, "sft"), config, registry)


def overrides(model: str, folder: Path, steps: int) -> list[str]:
    """Return the arguments after `peg run sft --config demo`."""
    return [
        f"model={model}",
        f"data.path={DATA / 'train.jsonl'}",
        f"data.validation={DATA / 'validation.jsonl'}",
        f"output={folder}",
        f"steps={steps}",
    ]


def show(answers: Sequence[str], wishes: Sequence[Wish]) -> None:
    """Print some wishes with their answers, and the score over all."""
    for wish, answer in zip(wishes, answers, strict=True):
        if wish.said in SHOWN:
            say(f"   {wish.said}")
            mark = "right" if is_right(answer, wish) else "wrong"
            say(f"   > {textwrap.shorten(answer, 110, placeholder=' …')}   ({mark})")
    right = count_right(answers, wishes)
    say(f"   held-out score: {right} of {len(wishes)} commands exactly right ({right / len(wishes):.0%})")


def free_folder(wanted: Path) -> Path:
    """Return `wanted`, or the first of wanted-2, wanted-3 … that does not exist, saying so."""
    folder, number = wanted, 1
    while os.path.lexists(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    if folder != wanted:
        say(f"\n{wanted} exists, so this run goes to {folder}.")
    return folder


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def farewell(model: str, folder: Path) -> None:
    """Print what to type next."""
    beside = Path(sys.executable).parent / "peg"
    peg = "peg" if shutil.which("peg") or not beside.exists() else shlex.quote(os.path.relpath(beside))
    say(f"\n{folder / 'final'} is a complete adapter, which PEFT, vLLM and Pegboard load as it is. Next:")
    say(f"   {peg} chat {folder / 'final'}")
    say(f"   {peg} run sft --config lora model={shlex.quote(model)} \\")
    say("       data.path=YOURS.jsonl data.format=instruct output=runs/yours")


def say(line: str) -> None:
    """Print at once, so that lines and progress bar come in order also where one of them is a pipe."""
    print(line, flush=True)
