"""A training run as any other, and the conversion of what it leaves."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.build import parse_dtype
from pegboard.errors import ConfigError
from pegboard.interfaces.quantizer import Quantizer
from pegboard.interfaces.recipe import Recipe
from pegboard.opened import open_any
from pegboard.quantised import write_quantised
from pegboard_qat.config import QatConfig
from pegboard_trainer.recipe import Train

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import RecipeSpec

log = logging.getLogger("pegboard.train")

CONVERTED = "converted"
"""Name of the folder inside a run that holds the model as integers."""


class TrainRounded(Recipe):
    """Trains with a quantizer that rounds while weights learn, then writes the model with its integers."""

    def run(self, spec: RecipeSpec, config: Mapping[str, Any], registry: Registry) -> Path:
        """Run to the end and return the run folder, which then holds `final`, in full precision, and `converted`.

        Raises ConfigError when the quantizer does not train, else as every training run does.
        """
        typed = QatConfig.model_validate({key: value for key, value in config.items() if key != "plugins"})
        quantizer: Quantizer = registry.create("quantizer", typed.quantizer)
        if not quantizer.trains:
            raise ConfigError(
                f"quantizer.use={typed.quantizer['use']} holds weights that nothing trains",
                fix="use one that trains (int4_qat), or the recipe sft with an adapter",
            )
        folder = Train().run(spec, config, registry)
        # What a launcher started writes once.
        if typed.convert and os.environ.get("RANK", "0") == "0":
            target = convert(registry, folder, quantizer, platform=typed.model.platform)
            log.info("converted: %s", target)
        return folder


def convert(registry: Registry, run: Path, quantizer: Quantizer, *, platform: str = "auto") -> Path:
    """Write the model that a run left last as integers and return its folder; one of an earlier end is replaced.

    An adapter is merged in float32 before, as the layers had it in training.
    """
    opened = open_any(registry, str((run / "final").resolve()))
    settings = opened.files.config
    dtype = parse_dtype(str(settings.get("dtype") or settings.get("torch_dtype") or "float32"))
    built = opened.build(registry, platform=platform, dtype="float32")
    target = run / CONVERTED
    fresh = run / f"{CONVERTED}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    write_quantised(built, quantizer, fresh, opened.files.files, dtype)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target
