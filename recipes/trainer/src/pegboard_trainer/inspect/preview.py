"""Examples and batches as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pegboard.types import Example, Row

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard_trainer.packer import Bin

WIDTH = 60
"""Characters of a full batch."""

LEARNED = ("green", "bright_green")
CONTEXT = ("white", "bright_black")
SEQUENCES = ("blue", "yellow", "magenta", "cyan")


class Painter:
    """color: whether learned tokens are green, and neighbouring tokens told apart by shades; else learned ones are in «»."""

    def __init__(self, tokenizer: Tokenizer, color: bool) -> None:
        self._tokenizer, self.color = tokenizer, color

    @property
    def legend(self) -> str:
        """What the marks mean."""
        if self.color:
            return f"learned: {self._style('green', fg=LEARNED[0])}; shades change with every token"
        return "learned: «»"

    def title(self, where: str, example: Example) -> str:
        """Return the line above an example."""
        tokens = sum(len(row.input_ids) for row in example)
        learned = sum(sum(row.mask[1:]) for row in example)
        return self._style(f"\n{where}: {tokens} tokens, {learned} learned ({learned / max(tokens, 1):.0%})", bold=True)

    def text(self, row: Row) -> str:
        """Return the text of a sequence with its learned tokens marked."""
        parts = [self._heading(row)] if row.part else []
        inside = False
        for number, (piece, learned) in enumerate(self._pieces(row)):
            if self.color:
                shades = LEARNED if learned else CONTEXT
                parts.append(click.style(piece, fg=shades[number % 2]))
            elif learned != inside:
                parts.append(("«" if learned else "»") + piece)
                inside = learned
            else:
                parts.append(piece)
        return "".join(parts) + ("»" if inside else "")

    def tokens(self, row: Row) -> str:
        """Return a line for each token: position, id, text, and whether it is learned."""
        lines = [self._heading(row).rstrip("\n")] if row.part else []
        for number, (index, (piece, learned)) in enumerate(zip(row.input_ids, self._pieces(row), strict=True)):
            line = f"{number:6d} {index:8d} {'learned' if learned else '       '} {piece!r}"
            lines.append(self._style(line, fg=LEARNED[0]) if learned else line)
        return "\n".join(lines)

    def batch(self, number: int, bin: Bin, capacity: int) -> str:
        """Return a bar of a batch's sequences, as wide as they are long."""
        rows = [row for example in bin.examples for row in example]
        bar, tokens, drawn = [], 0, 0
        for index, row in enumerate(rows):
            tokens += len(row.input_ids)
            width = max(round(WIDTH * tokens / capacity) - drawn, 0)
            drawn += width
            colored = self._style("█" * width, fg=SEQUENCES[index % len(SEQUENCES)])
            bar.append(colored if self.color else "█▒"[index % 2] * width)
        bar.append("·" * (WIDTH - drawn))
        sequences = f"{len(rows)} sequence{'s' if len(rows) != 1 else ''}"
        return f"batch {number:<3d} {''.join(bar)} {tokens}/{capacity} tokens ({tokens / capacity:.0%}), {sequences}"

    def _style(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self.color else text

    def _heading(self, row: Row) -> str:
        extras = ", ".join(f"{name}={_short(value)}" for name, value in row.extras.items())
        return self._style(f"[{row.part}]", bold=True) + (f" {extras}" if extras else "") + "\n"

    def _pieces(self, row: Row) -> list[tuple[str, bool]]:
        """Return what each token adds to the text, and whether it is learned; nothing predicts the first."""
        stream = self._tokenizer.stream(skip_special=False)
        learned = [False, *row.mask[1:]]
        pieces = [(harmless(stream.push(index)), wanted) for index, wanted in zip(row.input_ids, learned, strict=True)]
        rest = harmless(stream.flush())
        if rest and pieces:
            pieces[-1] = (pieces[-1][0] + rest, pieces[-1][1])
        return pieces


def harmless(text: str) -> str:
    """Return text in which nothing but letters, spaces and line breaks reaches the terminal: data may hold its control codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _short(value: object) -> str:
    text = harmless(repr(value).replace("\n", "\\n"))
    return text if len(text) <= 40 else text[:39] + "…"
