"""Errors that a user can cause and mend.

`peg` prints a `PegboardError` as a few lines and exits with status 2; any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PegboardError(Exception):
    """A mistake that the user can mend: `message` says what is wrong, `fix` what to do about it."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class ConfigError(PegboardError):
    """A configuration key is unknown, missing or has a wrong value."""


class PluginError(PegboardError):
    """A plugin is unknown, blocked, ambiguous, incompatible or fails to load."""


class DataError(PegboardError):
    """A data file or one of its rows cannot be used."""


class ModelError(PegboardError):
    """A model folder or file is incomplete, damaged or of an unsupported kind."""


class DeviceError(PegboardError):
    """A device is absent, broken, or has too little memory."""


def nearest(value: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
