"""Running `peg` in the process of a test."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Said:
    """What `peg` answered. err: what it printed to standard error, logged lines included."""

    status: int
    out: str
    err: str


def runner(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that runs `peg` with its arguments. Logging is as the command sets it up, and as it was afterwards."""
    from pegboard.cli import run_cli

    def run(*args: object) -> Said:
        capsys.readouterr()
        logger = logging.getLogger("pegboard")
        before = logger.handlers, logger.level, logger.propagate
        logger.handlers = []
        try:
            status = run_cli([str(arg) for arg in args])
        finally:
            logger.handlers, logger.level, logger.propagate = before
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run
