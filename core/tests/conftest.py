"""A toy platform, attention backend and family: what the core needs around it to build a model.

And distributions written to a temporary folder, which are discovered and imported like any that pip installed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from pegboard.interfaces.attention import AttentionBackend
from pegboard.interfaces.format import ModelFiles
from pegboard.interfaces.model import ModelFamily
from pegboard.interfaces.platform import DeviceInfo, Phase, Platform
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout, ParallelRule

# Other work on the machine must not fail a test.
settings.register_profile("core", deadline=None)
settings.load_profile("core")

CONFIG: dict[str, Any] = {
    "architectures": ["ToyForCausalLM"],
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class ToyPlatform(Platform):
    """The host, with nothing of its own."""

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(0, "toy", 1 << 30, 1 << 30)]

    def device(self, index: int = 0) -> torch.device:
        return torch.device("cpu")

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset()

    def default_dtype(self, index: int = 0) -> torch.dtype:
        return torch.float64

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("absent", "toy")

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        return {}

    def synchronize(self, index: int = 0) -> None:
        """Nothing runs behind the caller's back."""


class ToyAttention(AttentionBackend):
    """Attention of whole sequences, head by head."""

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        return "no sliding windows" if spec.window is not None else None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, str(dtype).removeprefix("torch."))

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> Any:
        return list(inputs.query_lens)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, plan: Any, cache: KVCache | None) -> Tensor:
        group = spec.num_heads // spec.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        parts = []
        for a, b, c in zip(q.split(plan), k.split(plan), v.split(plan), strict=True):
            scores = torch.einsum("qhd,khd->hqk", a, b) * spec.scale
            future = torch.ones(scores.shape[1:]).triu(1).bool()
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(future, float("-inf")).softmax(-1), c))
        return torch.cat(parts)


class ToyFamily(ModelFamily):
    """The dense decoder as it is."""

    def build(self, config: Mapping[str, Any]) -> CausalLM:
        return dense_causal_lm(config, qkv_bias=True, qk_norm=True, window=lambda layer: config.get("window"))

    def parallel_plan(self, config: Mapping[str, Any]) -> Sequence[ParallelRule]:
        return dense_parallel_plan(config)

    def rename(self, name: str) -> str | None:
        return None if name.endswith("stale") else name


class Held:
    """A tensor in memory, as a format hands it out; counts how often it was read."""

    def __init__(self, name: str, value: Tensor) -> None:
        self.name, self.value = name, value
        self.shape, self.dtype = tuple(value.shape), value.dtype
        self.loads = 0

    def load(self) -> Tensor:
        self.loads += 1
        return self.value

    def rows(self, start: int, stop: int) -> Tensor:
        return self.value[start:stop]


class ToyFiles(ModelFiles):
    """Random weights for a config."""

    location = "toy-model"
    generation_config: Mapping[str, Any] = {}
    files: Mapping[str, bytes] = {}
    portable = False
    config: Mapping[str, Any] = {}
    tensors: dict[str, Held] = {}  # type: ignore[assignment]  # noqa: RUF012  # set per instance

    def __init__(self, **changes: Any) -> None:
        self.config = {**CONFIG, **changes}
        generator = torch.Generator().manual_seed(3)
        with torch.device("meta"):
            model = ToyFamily().build(self.config)
        self.tensors = {
            name: Held(name, torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
            for name, parameter in model.named_parameters()
        }


def toy_registry(**changes: PluginSpec) -> Registry:
    """A registry of the toys; `changes` replace or add front doors by kind."""
    doors = {
        "platform": PluginSpec(kind="platform", target=f"{__name__}:ToyPlatform"),
        "attention": PluginSpec(kind="attention", target=f"{__name__}:ToyAttention"),
        "model": PluginSpec(
            kind="model",
            target=f"{__name__}:ToyFamily",
            capabilities={"architectures": ["ToyForCausalLM"], "model_types": ["toy"]},
        ),
        **changes,
    }
    return Registry.of({(kind, "toy"): spec for kind, spec in doors.items()})


@pytest.fixture
def registry() -> Registry:
    return toy_registry()


@pytest.fixture
def toy_files() -> Callable[..., ToyFiles]:
    return ToyFiles


class Site:
    """A folder on the path that distributions are written to. Their modules note it when they are imported."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.modules: set[str] = set()
        self._monkeypatch = monkeypatch
        self._log = folder / "imported.log"
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.delenv("PEGBOARD_DISABLE_PLUGINS", raising=False)
        monkeypatch.setenv("PEGBOARD_PLUGINS", "")

    def add(
        self,
        dist: str,
        plugins: Mapping[tuple[str, str], str],
        modules: Mapping[str, str] | None = None,
        *,
        version: str = "1.0",
        requires: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Install a distribution and put it on the allow-list, on which nothing else is.

        plugins: (kind, name) -> entry point. modules: dotted name -> source. files: path -> text.
        """
        info = self.folder / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        needs = [f"Requires-Dist: {line}" for line in requires]
        head = [
            "Metadata-Version: 2.1",
            f"Name: {dist}",
            f"Version: {version}",
            f"Summary: The {dist} of a test",
            *needs,
        ]
        (info / "METADATA").write_text("\n".join(head) + "\n\nSummary: not this line\n")
        groups: dict[str, list[str]] = {}
        for (kind, name), value in plugins.items():
            groups.setdefault(f"[pegboard.{kind}]", []).append(f"{name} = {value}")
        lines = [line for group, entries in groups.items() for line in (group, *entries)]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in (modules or {}).items():
            self.module(name, source)
        for path, text in (files or {}).items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)
        self._monkeypatch.setenv("PEGBOARD_PLUGINS", f"{os.environ['PEGBOARD_PLUGINS']},{dist}")

    def module(self, name: str, source: str) -> None:
        """Write a module, and the packages that it is in."""
        parts = name.split(".")
        path = self.folder.joinpath(*parts[:-1], f"{parts[-1]}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in [p for p in path.parents if p != self.folder and self.folder in p.parents]:
            (parent / "__init__.py").touch()
        note = f"with open({str(self._log)!r}, 'a') as _log:\n    print(__name__, file=_log)\n"
        path.write_text(note + source)
        self.modules.add(parts[0])

    def imported(self) -> list[str]:
        """Return the modules that were imported, in this process or another, in order."""
        return self._log.read_text().split() if self._log.exists() else []


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A place to install distributions that only this test sees; all others are blocked."""
    place = Site(tmp_path / "site", monkeypatch)
    yield place
    for name in [name for name in sys.modules if name.partition(".")[0] in place.modules]:
        del sys.modules[name]


RECIPE = """
from pegboard.plugins.spec import PluginSpec, RecipeSpec
RECIPE = RecipeSpec(target="bake_run.run:Bake", schema="bake_run.config:Config", objective="none")
STEPPER = PluginSpec(kind="optimizer", target="bake_run.run:Stepper", schema="bake_run.config:Steps")
PLAIN = PluginSpec(kind="logger", target="bake_run.run:Plain")
"""
RECIPE_CONFIG = """
from typing import Annotated
from pydantic import BaseModel, ConfigDict, Field
from pegboard.config import Choice, PathSection, PluginSection
class Forbid(BaseModel):
    model_config = ConfigDict(extra="forbid")
class Steps(Forbid):
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
class Model(PathSection):
    dtype: str = "auto"
class Config(Forbid):
    name: str = "bake"
    output: str
    count: int = Field(default=1, ge=0)
    share: float | None = None
    model: Model
    data: Annotated[Choice, PluginSection("source", default="rows", bare="path")] | None = None
    optimizer: Annotated[Choice, PluginSection("optimizer")]
    loggers: list[Annotated[Choice, PluginSection("logger")]] = []
    notes: dict[str, str] = {}
"""
RECIPE_RUN = """
from pathlib import Path
from pegboard.config import dump_config
from pegboard.interfaces.recipe import Recipe
class Bake(Recipe):
    def run(self, spec, config, registry):
        folder = Path(config["output"])
        folder.mkdir()
        stepper = registry.create("optimizer", config["optimizer"])
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        (folder / "lr").write_text(str(stepper.options.lr))
        return folder
class Stepper:
    def __init__(self, options):
        self.options = options
class Plain: ...
"""
RECIPE_CONFIGS = {
    "default": """# The usual
output: ???
model: {path: ???, dtype: bfloat16}
optimizer: {use: stepper, lr: 0.5}
""",
    "small": """extends: default
count: 2
loggers: [plain]
name: small-${count}
""",
}


@pytest.fixture
def bakery(site: Site) -> Site:
    """An installed recipe `bake`, whose implementation and plugins lie in another package than its front door."""
    site.add(
        "bake-peg",
        {
            ("recipe", "bake"): "bake_door.plugin:RECIPE",
            ("optimizer", "stepper"): "bake_door.plugin:STEPPER",
            ("logger", "plain"): "bake_door.plugin:PLAIN",
        },
        {"bake_door.plugin": RECIPE, "bake_run.config": RECIPE_CONFIG, "bake_run.run": RECIPE_RUN},
        files={f"bake_door/configs/{name}.yaml": text for name, text in RECIPE_CONFIGS.items()},
    )
    return site


@dataclass(frozen=True)
class Said:
    """What `peg` answered. err: what it printed to standard error, logged lines included."""

    status: int
    out: str
    err: str


@pytest.fixture
def peg(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run `peg` in this process."""
    from pegboard.cli import run_cli

    def run(*args: str) -> Said:
        capsys.readouterr()
        logger = logging.getLogger("pegboard")
        before = logger.handlers, logger.level, logger.propagate
        logger.handlers = []
        try:
            status = run_cli(list(args))
        finally:
            logger.handlers, logger.level, logger.propagate = before
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run
