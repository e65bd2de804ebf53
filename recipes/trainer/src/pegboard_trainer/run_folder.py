"""The folder of a run before its first step and after its last one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pegboard.build import BuiltModel
from pegboard.config import dump_config
from pegboard.errors import ConfigError
from pegboard_trainer.checkpoint import find_resume, mark_final
from pegboard_trainer.config import TrainConfig
from pegboard_trainer.disk import remove_unfinished
from pegboard_trainer.environment import environment

log = logging.getLogger("pegboard.train")


def claim(folder: Path, config: TrainConfig) -> Path | None:
    """Return the step folder to resume from. Raises ConfigError when the output exists and would be written over."""
    resumed = find_resume(config.resume, folder)
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    continues = resumed is not None and resumed.parent.resolve() == folder.resolve()
    # `auto` also takes over a folder in which a run died before its first step folder.
    unborn = config.resume == "auto" and resumed is None and (folder / "config.yaml").is_file()
    if occupied and not continues and not unborn:
        raise ConfigError(
            f"the output folder {folder} exists", fix="choose another output, or resume=auto to continue the run in it"
        )
    return resumed


def nothing_left(folder: Path, resumed: Path, step: int, total: int, *, first: bool) -> Path:
    """Say that a run has taken its steps, and return its folder. Raises ConfigError when it is another run's folder."""
    reached = f"{resumed} has taken step {step}, and {total} are asked for"
    more = "ask for more with steps=… or epochs=…"
    if resumed.parent.resolve() != folder.resolve():
        raise ConfigError(f"{reached}: nothing is left to train", fix=more)
    if first:
        mark_final(folder, step)  # a kill may have come between the last save and this
        log.info("the run is finished: %s; nothing is done (%s)\nmodel: %s", reached, more, folder / "final")
    return folder


def make(folder: Path, config: Mapping[str, Any], built: BuiltModel) -> None:
    """Make the folder, with what the run is made of; remove what a killed run left half-written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # /proc, say: the place is there and takes no folder
        raise ConfigError(f"the output folder {folder} cannot be made", fix="choose another output") from None
    remove_unfinished(folder)
    (folder / "config.yaml").write_text(dump_config(dict(config)))
    (folder / "env.json").write_text(json.dumps(environment(built), indent=1) + "\n")
