"""A toy platform, attention backend and family: what the core needs around it to build a model; and a recipe, installed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.interfaces.attention import AttentionBackend
from pegboard.interfaces.format import ModelFiles
from pegboard.interfaces.model import ModelFamily
from pegboard.interfaces.platform import DeviceInfo, Phase, Platform
from pegboard.nn import CausalLM, dense_causal_lm, dense_parallel_plan
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout, ParallelRule
from pegboard_sdk.site import Site

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


@pytest.fixture
def site(plugin_site: Site) -> Site:
    """A place to install distributions that only this test sees; all others are blocked."""
    return plugin_site


@pytest.fixture
def hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lines of a module that never comes to its end. Time limits of child processes count from when they reach it, so that no
    machine is too slow for what comes before.
    """

    class Child(subprocess.Popen[str]):
        def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
            hangs = tmp_path / f"hangs-{self.pid}"
            while timeout is not None and self.poll() is None and not hangs.exists():
                time.sleep(0.01)
            return super().communicate(input, timeout)

    monkeypatch.setattr(subprocess, "Popen", Child)
    return f"import os, time\nopen(f'{tmp_path}/hangs-{{os.getpid()}}', 'w').close()\ntime.sleep(6000)\n"


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
