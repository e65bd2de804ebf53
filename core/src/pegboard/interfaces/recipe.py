"""Kind `recipe`: a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import RecipeSpec


class Recipe(ABC):
    """Runs what a RecipeSpec describes. The spec's `schema` has validated `config`."""

    @abstractmethod
    def run(self, spec: RecipeSpec, config: Mapping[str, Any], registry: Registry) -> Path:
        """Run to the end (or to a clean stop by a signal) and return the run folder.

        `config` is the resolved configuration as plain JSON values; it is written beside the run and re-runs it exactly.
        """
