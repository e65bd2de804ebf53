from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pegboard.interfaces.logger import RunInfo
from pegboard_console.logger import ConsoleLogger
from pegboard_console.options import ConsoleOptions
from pegboard_console.show import number, summary


def shown(style: str, *, terminal: bool, every: int = 10, steps: int = 25) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, color_system=None, highlight=False)
    logger = ConsoleLogger(ConsoleOptions(style=style, every=every), console)  # type: ignore[arg-type]
    logger.start(RunInfo("tune", Path("runs/x"), {}, total_steps=steps))
    for step in range(1, steps + 1):
        logger.log(step, {"loss": 1.0 / step, "tokens_per_second": 1234.5})
    logger.log(steps, {"validation/loss": 0.25})
    logger.message("a line [with] brackets")
    logger.finish("stopped")
    return out.getvalue()


def test_lines_come_at_the_first_every_tenth_and_last_step() -> None:
    lines = shown("auto", terminal=False).splitlines()
    steps = [line.split()[1] for line in lines if line.startswith("step") and "validation" not in line]
    assert steps == ["1/25", "10/25", "20/25", "25/25"]
    assert "step 25/25  validation/loss 0.25" in lines
    assert "a line [with] brackets" in lines
    assert lines[-1] == "tune: stopped"


def test_a_long_line_is_not_broken() -> None:
    out = io.StringIO()
    logger = ConsoleLogger(ConsoleOptions(), Console(file=out, width=20))
    logger.start(RunInfo("tune", Path("x" * 80), {}, total_steps=1))
    logger.finish("finished")
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_gets_a_bar_that_ends_full() -> None:
    text = shown("auto", terminal=True)
    assert "25/25" in text
    assert "loss 0.04" in text
    assert "step 10/25" not in text


@pytest.mark.parametrize(
    ("value", "text"), [(2.34567, "2.346"), (0.0002, "0.0002"), (12345.6, "12,346"), (3.0, "3"), (float("nan"), "nan")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_the_summary_holds_only_what_there_is() -> None:
    assert summary({"loss": 1.5, "lr": 0.1}) == "loss 1.5"
