"""What every target is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry


class Target(ABC):
    """A reader. `make` is pure; `read` raises PegboardError for input that it refuses, and nothing else.

    share: its inputs compared with those of other targets; what takes longer gets fewer.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    share: ClassVar[float] = 1.0

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def missing(self) -> str:
        """Return which plugin this needs that is not installed, or an empty string."""
        return ""

    @abstractmethod
    def make(self, seed: int) -> bytes:
        """Return the content of the input file."""

    @abstractmethod
    def read(self, path: Path, seed: int) -> None:
        """Read the file as far as a run would."""

    def prepare(self) -> None:
        """Make what reading needs, before time and memory are limited; `read` may come without it. Safe to call twice."""
        return

    def close(self) -> None:
        """Free what reading has made."""
        return
