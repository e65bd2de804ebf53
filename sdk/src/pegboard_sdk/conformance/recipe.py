"""The suite of kind `recipe`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pegboard.cli import run_cli
from pegboard.opened import open_any
from pegboard.plugins.index import scan
from pegboard.plugins.load import Registry
from pegboard.weights import read_folder, read_safetensors
from pegboard_sdk.configs import ready_configs
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite, _opens
from pegboard_sdk.toys.folder import SMALL, write_folder

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL}
ADAPTER = "adapter_model.safetensors"
QUICK = (
    "model.dtype=float32",
    "model.platform=cpu",
    "loggers=[jsonl]",
    "batch.size=4",
    "batch.length=64",
    "schedule.warmup=0",
    "deterministic=true",
)


@standard
class RecipeSuite(PluginSuite):
    """An installed recipe's configs, on a toy of two layers that needs pegboard-llama, -hub and -tokenizers, on the CPU.

    configs: the ready configs in their order, each with the adapter and the quantizer that it chooses, or None.
    given: overrides for paths, and what else a config leaves open, beside `model`, `data.path` and `output`. {model}, {other} and
        {folder} in them are two toys of one tokenizer, and the folder that data and runs are in.
    rows: of the data, as JSON Lines.
    small: overrides that make a run short; later ones win.
    learns: the config whose runs are measured, and overrides with which it learns within `steps` steps. metric: what these change.
        rises: whether it grows.
    left: folders of a run, beside `final`, that hold complete models.
    """

    kind = "recipe"
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]]
    rows: ClassVar[Sequence[Mapping[str, Any]]]
    given: ClassVar[Sequence[str]] = ()
    small: ClassVar[Sequence[str]] = ()
    learns: ClassVar[tuple[str, Sequence[str]]] = ("lora", ("optimizer.lr=0.01",))
    steps: ClassVar[int] = 8
    metric: ClassVar[str] = "loss"
    rises: ClassVar[bool] = False
    left: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test that takes `config` once for each ready config."""
        if "config" in metafunc.fixturenames:
            metafunc.parametrize("config", list(self.configs))

    @classmethod
    def name(cls) -> str:
        """Return what `peg run` calls the recipe: the name of the entry point that an installed distribution gives it."""
        return next(record.name for record in scan().of_kind("recipe") if _opens(record) == cls.spec)

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return a folder with two toys and the data."""
        return cls.write(tmp_path_factory.mktemp("recipe"))

    @classmethod
    def write(cls, folder: Path) -> Path:
        """Write two toys and the data into a folder, and return it."""
        for name, seed in (("model", 11), ("other", 12)):
            write_folder(folder / name, LLAMA, norm_spread=0, seed=seed)
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cls.rows))
        return folder

    @classmethod
    def arguments(cls, place: Path, *more: str) -> list[str]:
        """Return what a small run is given beside its config and output."""
        words = {"{model}": place / "model", "{other}": place / "other", "{folder}": place}
        given = list(cls.given)
        for word, path in words.items():
            given = [text.replace(word, str(path)) for text in given]
        paths = [f"model={place / 'model'}", f"data.path={place / 'data.jsonl'}"]
        return [*paths, *QUICK, *given, *cls.small, *more]

    @classmethod
    def run(cls, place: Path, config: str, output: str, *more: str) -> Path:
        """Run a config to its end; return the run folder."""
        folder = place / output
        command = ["run", cls.name(), "--config", config, *cls.arguments(place, f"output={folder}", *more)]
        assert run_cli(command) == 0, "peg " + " ".join(command)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, place: Path) -> Path:
        """Return the run of `learns`, with a step folder in its middle."""
        config, more = cls.learns
        keeps = [f"checkpoint.every={cls.steps // 2}", "checkpoint.keep=null"]
        return cls.run(place, config, "whole", *more, f"steps={cls.steps}", *keeps)

    def test_configs_are_valid(self, place: Path) -> None:
        """There are exactly the ready configs that are said to be, and each fits the schema once its paths are given."""
        found = ready_configs(self.name(), self.arguments(place, f"output={place / 'none'}"))
        chosen = {
            name: tuple((getattr(config, part, None) or {}).get("use") for part in ("adapter", "quantizer"))
            for name, config in found.items()
        }
        assert chosen == dict(self.configs)
        assert list(found) == list(self.configs)

    def test_config_runs(self, place: Path, config: str) -> None:
        """Two steps of each leave finite numbers, a folder that opens, and nothing half-written."""
        run = self.run(place, config, config, "steps=2", "checkpoint.keep=1")
        lines = _lines(run)
        assert [line["step"] for line in lines if "loss" in line][-1] == 2
        assert all(math.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
        assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
        for name in ("final", *self.left):
            location = (run / name).resolve()
            assert (location / ADAPTER).is_file() == (name == "final" and self.configs[config][0] is not None)
            registry = Registry.discover()
            assert open_any(registry, str(location)).build(registry, platform="cpu", dtype="float32").model is not None

    def test_learns(self, whole: Path) -> None:
        """The metric is better over the last quarter of the steps than over the first."""
        values = [line[self.metric] for line in _lines(whole) if line.get(self.metric) is not None]
        share = max(len(values) // 4, 1)
        first, last = sum(values[:share]) / share, sum(values[-share:]) / share
        assert last > first if self.rises else last < first, values

    def test_a_resumed_run_is_the_run_that_went_on(self, place: Path, whole: Path) -> None:
        """Weights and metrics are the same to the last bit, from a step in the middle on."""
        middle = self.steps // 2
        part = place / "part"
        shutil.copytree(whole, part, symlinks=True)
        for folder in part.glob("step-*"):
            if int(folder.name[5:]) > middle:
                shutil.rmtree(folder)
        config, more = self.learns
        keeps = [f"checkpoint.every={middle}", "checkpoint.keep=null"]
        self.run(place, config, "part", *more, f"steps={self.steps}", *keeps, "resume=auto")
        ours, theirs = _weights(part), _weights(whole)
        assert list(ours) == list(theirs)
        assert [name for name in ours if not ours[name].equal(theirs[name])] == []
        after = [{line["step"]: line["loss"] for line in _lines(run) if "loss" in line} for run in (part, whole)]
        assert {step: loss for step, loss in after[0].items() if step > middle} == {
            step: loss for step, loss in after[1].items() if step > middle
        }


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(run: Path) -> dict[str, Any]:
    file = run / "final" / ADAPTER
    found = read_safetensors(file) if file.is_file() else read_folder(run / "final")
    return {name: tensor.load() for name, tensor in found.items()}
