"""What a terminal shows, with a tokenizer whose ids are bytes."""

from __future__ import annotations

from typing import Any

import click

from pegboard.types import Row
from pegboard_trainer.inspect.preview import WIDTH, Painter, harmless
from pegboard_trainer.packer import Bin


def row(text: str, learned: str, part: str = "", **extras: Any) -> Row:
    """A marker of beginning and the bytes of a text, of which `learned` is the end."""
    ids = [256, *text.encode()]
    count = len(learned.encode())
    return Row(ids, [False] * (len(ids) - count) + [True] * count, extras, part)


def test_learned_text_is_marked(tiny_tokenizer: Any) -> None:
    painter = Painter(tiny_tokenizer, color=False)
    assert painter.text(row("ask: é four", "four")) == "<bos>ask: é «four»"
    assert painter.text(row("a b", "")) == "<bos>a b"
    middle = Row([97, 98, 99, 97], [True, True, False, True])
    # The first token is predicted by nothing, so it is not learned whatever the mask says.
    assert painter.text(middle) == "a«b»c«a»"
    assert painter.text(row("x", "x", "chosen", margin=0.5, note="n" * 60)).startswith(
        "[chosen] margin=0.5, note='" + "n" * 38 + "…\n<bos>«x»"
    )


def test_colours_hide_nothing(tiny_tokenizer: Any) -> None:
    shown = Painter(tiny_tokenizer, color=True).text(row("ask: é four", "four"))
    assert click.unstyle(shown) == "<bos>ask: é four"
    assert click.style("f", fg="green") in shown or click.style("f", fg="bright_green") in shown


def test_a_line_for_each_token(tiny_tokenizer: Any) -> None:
    lines = Painter(tiny_tokenizer, color=False).tokens(row("a\n", "\n")).splitlines()
    assert [line.split(maxsplit=2) for line in lines] == [
        ["0", "256", "'<bos>'"],
        ["1", "97", "'a'"],
        ["2", "10", "learned '\\n'"],
    ]


def test_control_codes_of_the_data_do_not_reach_the_terminal(tiny_tokenizer: Any) -> None:
    assert harmless("a\x1b[2Jb\n\tc\x07é") == "a\\x1b[2Jb\n\tc\\x07é"
    shown = Painter(tiny_tokenizer, color=False).text(row("\x1b[31m", "", "x", note="\x1b"))
    assert "\x1b" not in shown


def test_a_batch_is_as_wide_as_it_is_full(tiny_tokenizer: Any) -> None:
    bin = Bin()
    for number, length in enumerate((30, 15, 5)):
        bin.add((0, number, 0), (Row([1] * length, [True] * length),))
    line = Painter(tiny_tokenizer, color=False).batch(2, bin, 100)
    bar = line.split()[2]
    assert bar == "█" * 18 + "▒" * 9 + "█" * 3 + "·" * 30
    assert len(bar) == WIDTH
    assert line.endswith("50/100 tokens (50%), 3 sequences")
    assert Painter(tiny_tokenizer, color=True).batch(1, bin, 50).endswith("(100%), 3 sequences")
