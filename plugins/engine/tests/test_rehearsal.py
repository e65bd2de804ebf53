"""The copy of a model that is rehearsed, and when that happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from pegboard.build import BuiltModel, prepare_model
from pegboard.nn import CausalLM
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_engine.plugin import UNIPROC
from pegboard_engine.rehearsal import one_of_each
from pegboard_sdk.toys.model import MIXTURE, TINY, RandomFiles
from pegboard_sdk.toys.platform import HostPlatform

WORK: list[Callable[[], None]] = []
CLOSED: list[bool] = []


class Begun:
    """A rehearsal that is over when it begins."""

    def watched(self) -> None:
        """Return at once."""

    def close(self) -> None:
        CLOSED.append(True)


class Stage(HostPlatform):
    """The host as a device that computes apart, and keeps what it is given to rehearse."""

    def capabilities(self, index: int = 0) -> frozenset[str]:
        return frozenset({"apart"})

    def rehearse(self, work: Callable[[], None], index: int = 0) -> Any:
        WORK.append(work)
        return Begun()


REGISTRY = Registry.of(
    {
        ("platform", "stage"): PluginSpec(kind="platform", target=f"{__name__}:Stage"),
        ("attention", "sdpa"): PluginSpec(kind="attention", target="pegboard_sdpa.backend:SdpaAttention"),
        ("model", "tiny"): PluginSpec(
            kind="model",
            target="pegboard_sdk.toys.model:TinyFamily",
            capabilities={"architectures": ["TinyForCausalLM"], "model_types": ["tiny"]},
        ),
        ("executor", "uniproc"): UNIPROC,
    }
)


def prepare(config: Mapping[str, Any]) -> BuiltModel:
    """Return a model without weights."""
    files = RandomFiles(REGISTRY.create("model", "tiny"), config, seed=1)
    return prepare_model(REGISTRY, files, platform="stage", attention="sdpa", dtype="float32", phase="decode")


@pytest.fixture
def prepared() -> BuiltModel:
    return prepare({**TINY, "num_hidden_layers": 3})


def tensors(model: CausalLM) -> set[int]:
    """Return where everything lies that a model's modules hold."""
    held = [value for module in model.modules() for value in (*vars(module).values(), *module._parameters.values())]
    return {value.data_ptr() for value in held if isinstance(value, torch.Tensor)}


def test_a_copy_has_one_layer_of_each_kind_over_the_same_storage(prepared: BuiltModel) -> None:
    model = prepared.load().model
    copied = one_of_each(model)
    assert len(copied.model.layers) == 1
    assert tensors(copied) <= tensors(model)
    assert copied.model.layers[0].self_attn is not model.model.layers[0].self_attn
    assert copied.model.layers[0].kernels is model.kernels
    assert copied.model.embed_tokens.weight is model.model.embed_tokens.weight


def test_a_layer_of_another_kind_is_there_too() -> None:
    model = prepare({**MIXTURE, "num_hidden_layers": 4}).load().model
    copied = one_of_each(model)
    kinds = [[type(child) for child in layer.children()] for layer in copied.model.layers]
    assert kinds == [[type(child) for child in layer.children()] for layer in model.model.layers[:2]]
    assert tensors(copied) <= tensors(model)


def test_an_engine_rehearses_between_storage_and_weights(prepared: BuiltModel) -> None:
    engine = PagedEngine(EngineOptions(page_size=16, max_model_len=64, max_num_seqs=3, rehearse=True))
    engine.load(prepared, None, REGISTRY)
    (work,) = WORK
    WORK.clear()
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    work()
    seen = [module._seen for module in prepared.model.modules() if hasattr(module, "_seen")]
    assert seen and not any(seen), "the model itself was called"
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())
    engine.close()
    assert CLOSED == [True]
    CLOSED.clear()


def test_nothing_is_rehearsed_unless_it_is_asked_for(prepared: BuiltModel) -> None:
    engine = PagedEngine(EngineOptions(page_size=16, max_model_len=64, max_num_seqs=3))
    engine.load(prepared, None, REGISTRY)
    engine.close()
    assert not WORK


def test_a_loaded_model_is_not_rehearsed(prepared: BuiltModel) -> None:
    engine = PagedEngine(EngineOptions(page_size=16, max_model_len=64, max_num_seqs=3, rehearse=True))
    engine.load(prepared.load(), None, REGISTRY)
    engine.close()
    assert not WORK


HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "transformers",
    "pandas",
    "matplotlib",
    "triton",
)
"""What takes tenths of a second to import, and nothing of which is needed on the way to a first token on the host."""


def test_no_first_token_waits_for_what_it_does_not_need() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
import test_rehearsal as own
from pegboard.types import SamplingParams
built = own.prepare(own.TINY)
engine = own.PagedEngine(own.EngineOptions(page_size=16, max_model_len=64, max_num_seqs=3, rehearse=True))
engine.load(built, None, own.REGISTRY)
own.WORK.pop()()
engine.add_request("one", [1, 2, 3], SamplingParams(max_tokens=3, temperature=0.5, top_p=0.9))
while engine.has_unfinished():
    engine.step()
print([name for name in own.HEAVY if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
