"""A recipe that takes no time: its loss is (x - 3)^2 + size / 10, falling from 10 to that in a few steps."""

from __future__ import annotations

import os

import pytest

from pegboard_sdk.site import Site

DOOR = """
from pegboard.plugins.spec import RecipeSpec
RECIPE = RecipeSpec(target="quick_run.run:Quick", schema="quick_run.config:Config", objective="none")
"""
CONFIG = """
from typing import Annotated, Literal
from pydantic import BaseModel, ConfigDict, Field
from pegboard.config import Choice, PluginSection
class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    device: int = 0
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    output: str
    resume: str | None = None
    x: float = Field(default=0.0, ge=0)
    size: int = 1
    held_out: bool = True
    act: Literal["run", "raise", "wait", "nan"] = "run"
    model: Model = Field(default_factory=Model)
    loggers: list[Annotated[Choice, PluginSection("logger")]] = []
"""
RUN = """
import json, os, signal, time
from pathlib import Path
from pegboard.interfaces.recipe import Recipe
from pegboard.interfaces.logger import RunInfo
class Quick(Recipe):
    def run(self, spec, config, registry):
        folder = Path(config["output"])
        if config["resume"] != "auto" and folder.exists():
            raise FileExistsError(folder)
        folder.mkdir(exist_ok=True)
        known = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS",)}
        (folder / "told.json").write_text(json.dumps({**config, **known}))
        with (folder.parent / "starts").open("a") as file:
            file.write(f"{folder.name}\\n")
        print("hello from", folder.name, flush=True)
        if config["act"] == "raise":
            raise RuntimeError("this run does not work")
        (logger,) = [registry.create("logger", choice) for choice in config["loggers"]]
        logger.start(RunInfo("quick", folder, config, 4))
        if config["act"] == "wait" and not (folder.parent / "go").exists():
            def stop(*_):
                (folder / "saved").touch()
                raise SystemExit(143)
            signal.signal(signal.SIGTERM, stop)
            (folder / "waiting").touch()
            time.sleep(6000)
        end = (config["x"] - 3) ** 2 + config["size"] / 10
        for step in range(1, 5):
            metrics = {"loss": end + (10 - end) * (4 - step) / 3, "reward": -end}
            if config["held_out"] and step % 2 == 0:
                metrics["validation/loss"] = metrics["loss"] + 1
            if config["act"] == "nan":
                metrics = {"loss": 1e999, "validation/loss": 1e999}
                (folder / "metrics.jsonl").write_text('{"step": 1, "loss": Infinity, "validation/loss": Infinity}\\n')
                continue
            logger.log(step, metrics)
        logger.finish("finished")
        return folder
"""


@pytest.fixture
def quick(plugin_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The recipe `quick`, beside the sweep and the logger that it needs."""
    plugin_site.add(
        "quick-peg",
        {("recipe", "quick"): "quick_door.plugin:RECIPE"},
        {"quick_door.plugin": DOOR, "quick_run.config": CONFIG, "quick_run.run": RUN},
        files={"quick_door/configs/default.yaml": "output: ???\nloggers: [jsonl]\n"},
    )
    allowed = f"{os.environ['PEGBOARD_PLUGINS']},pegboard-sweep,pegboard-jsonl,pegboard-optuna"
    monkeypatch.setenv("PEGBOARD_PLUGINS", allowed)
    return plugin_site
