"""A tiny engine over exact arithmetic, and a tiny Hugging Face folder for what starts from a path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.plugins.hooks import hookimpl
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.weights import write_safetensors
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_sdk.toys.folder import SMALL, write_folder
from pegboard_sdk.toys.model import random_model
from pegboard_sdk.toys.tokenizer import TinyTokenizer


class Watcher:
    """An observer that keeps what ended."""

    ended: list[Any] = []  # noqa: RUF012  # the registry makes the instance

    @hookimpl
    def request_finished(self, output: Any) -> None:
        self.ended.append(output)


@pytest.fixture
def ended() -> list[Any]:
    """Outputs that the observer of `executors` heard of."""
    Watcher.ended.clear()
    return Watcher.ended


@pytest.fixture
def executors() -> Registry:
    watcher = PluginSpec(kind="hooks", target=f"{__name__}:Watcher")
    return Registry.of({("executor", "uniproc"): UNIPROC, ("hooks", "watcher"): watcher})


@pytest.fixture(scope="session")
def built() -> BuiltModel:
    return random_model(phase="decode", seed=3)


@pytest.fixture
def start(built: BuiltModel, executors: Registry) -> Iterator[Callable[..., PagedEngine]]:
    """Return a function that makes an engine over the tiny model; afterwards none of them may hold a page."""
    made = []

    def make(*, tokenizer: TinyTokenizer | None = None, model: BuiltModel | None = None, **options: Any) -> PagedEngine:
        engine = PagedEngine(EngineOptions(**{"page_size": 4, "max_model_len": 64, **options}))
        engine.load(model or built, tokenizer, executors)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()
        assert engine.num_held_pages == 0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random llama, a byte-level tokenizer and a chat template."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL, "eos_token_id": 0}
    return write_folder(tmp_path_factory.mktemp("models") / "toy", {**config, "max_position_embeddings": 128})


@pytest.fixture(scope="session")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter for the model of `folder`, of PEFT's files."""
    path = tmp_path_factory.mktemp("adapters") / "tuned"
    path.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(folder)}))
    generator = torch.Generator().manual_seed(1)
    shapes = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (32, 48)}
    tensors = [
        (
            f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight",
            torch.randn(shape, generator=generator) / 2,
        )
        for layer in (0, 1)
        for name, (wide, out) in shapes.items()
        for side, shape in (("A", (2, wide)), ("B", (out, 2)))
    ]
    write_safetensors(path / "adapter_model.safetensors", tensors)
    return path
