"""Weights that change while answers are given: the answers that follow are those of an engine made for the new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegboard.build import BuiltModel, build_model, load_tokenizer, open_model
from pegboard.interfaces.engine import Engine, RequestOptions
from pegboard.nn import Linear
from pegboard.plugins.load import Registry
from pegboard.types import ForwardContext, SamplingParams
from pegboard_rollouts.sampler import PolicySampler
from pegboard_rollouts.weights import SharedWeights
from pegboard_sdk.toys.folder import SMALL, write_folder
from pegboard_trainer.roles import ModelRole

PROMPTS = [[7, 8, 9, 10, 11], [40, 41], [7, 8, 9, 10, 11, 12, 13]]
COUNT = 8
ADAPTER = {"use": "lora", "rank": 4, "alpha": 8, "targets": "all-linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SMALL, "eos_token_id": 0}
    return write_folder(tmp_path_factory.mktemp("sync") / "model", config)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.close()


def build(registry: Registry, folder: Path, *, adapter: bool = False, quantizer: str | None = None) -> BuiltModel:
    return build_model(
        registry,
        open_model(registry, str(folder)),
        platform="cpu",
        dtype="float32",
        phase="train",
        adapter=registry.create("adapter", ADAPTER) if adapter else None,
        quantizer=None if quantizer is None else registry.create("quantizer", quantizer),
    )


def role_of(built: BuiltModel) -> ModelRole:
    return ModelRole(built, trained=True)


def serve(registry: Registry, built: BuiltModel, engines: list[Engine]) -> Engine:
    engine: Engine = registry.create("engine", {"use": "paged", "page_size": 4, "max_model_len": 64})
    engine.load(built, None, registry)
    engines.append(engine)
    return engine


def answers(engine: Engine, name: str = "a") -> list[list[int]]:
    params = SamplingParams(max_tokens=COUNT, temperature=0, ignore_eos=True, detokenize=False)
    for number, prompt in enumerate(PROMPTS):
        engine.add_request(f"{name}{number}", prompt, params, RequestOptions(whole=True))
    found: dict[str, list[int]] = {}
    while engine.has_unfinished():
        found |= {output.request_id: output.token_ids for output in engine.step()}
    return [found[f"{name}{number}"] for number in range(len(PROMPTS))]


def change(built: BuiltModel, seed: int) -> None:
    """What an optimizer does: new values in the old places."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in built.model.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def copy(source: BuiltModel, target: BuiltModel) -> None:
    """The same values in other places."""
    values = {**dict(source.model.named_parameters()), **dict(source.model.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*target.model.named_parameters(), *target.model.named_buffers()):
            tensor.copy_(values[name])


class Prepacked(Linear):
    """A layer that computes with a form of its weight that was derived from it."""

    packed: Tensor
    version = 0

    @classmethod
    def of(cls, plain: Linear) -> Prepacked:
        made = cls(plain.in_features, plain.out_features, bias=False)
        made.weight, made.kernels = plain.weight, plain.kernels
        made.packed = plain.weight.detach().t().contiguous()
        return made

    def refresh(self, version: int) -> None:
        self.packed.copy_(self.weight.detach().t())
        self.version = version

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        return x @ self.packed


def prepack(model: nn.Module) -> list[Prepacked]:
    found = []
    for parent in list(model.modules()):
        plain = getattr(parent, "down_proj", None)
        if isinstance(plain, Linear):
            parent.down_proj = Prepacked.of(plain)  # type: ignore[assignment]
            found.append(parent.down_proj)
    return found


Prepare = Callable[[Registry, Path], BuiltModel]

FORMS: dict[str, Prepare] = {
    "fused": lambda registry, folder: build(registry, folder),
    "adapter": lambda registry, folder: build(registry, folder, adapter=True),
    "adapter over int8": lambda registry, folder: build(registry, folder, adapter=True, quantizer="int8"),
    "adapter over nf4": lambda registry, folder: build(registry, folder, adapter=True, quantizer="nf4"),
}


@pytest.mark.parametrize("form", FORMS)
def test_new_weights_while_serving(registry: Registry, folder: Path, engines: list[Engine], form: str) -> None:
    built = FORMS[form](registry, folder)
    engine = serve(registry, built, engines)
    places = {name: parameter.data_ptr() for name, parameter in built.model.named_parameters()}
    before = answers(engine)
    params = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, detokenize=False)
    engine.add_request("during", PROMPTS[0], params)
    for _ in range(3):
        engine.step()
    for version in (1, 2):
        change(built, version)
        engine.update_weights(version)
        after = answers(engine, f"v{version}-")
        fresh = FORMS[form](registry, folder)
        copy(built, fresh)
        assert after == answers(serve(registry, fresh, engines))
        assert after != before
        before = after
    assert {name: parameter.data_ptr() for name, parameter in built.model.named_parameters()} == places


def test_a_derived_form_is_refreshed_in_place(registry: Registry, folder: Path, engines: list[Engine]) -> None:
    built = build(registry, folder)
    layers = prepack(built.model)
    assert layers
    engine = serve(registry, built, engines)
    places = [layer.packed.data_ptr() for layer in layers]
    answers(engine)
    change(built, 5)
    fresh = build(registry, folder)
    copy(built, fresh)
    wanted = answers(serve(registry, fresh, engines))
    assert answers(engine, "stale") != wanted  # nobody told it
    engine.update_weights(9)
    assert answers(engine, "b") == wanted
    assert [layer.version for layer in layers] == [9] * len(layers)
    assert [layer.packed.data_ptr() for layer in layers] == places


def test_an_adapter_as_it_is_answers_like_one_that_was_merged(
    registry: Registry, folder: Path, engines: list[Engine]
) -> None:
    built = build(registry, folder, adapter=True)
    engine = serve(registry, built, engines)
    change(built, 3)
    engine.update_weights(1)
    alive = answers(engine)
    other = build(registry, folder, adapter=True)
    copy(built, other)
    registry.create("adapter", ADAPTER).merge(other.model)
    assert alive == answers(serve(registry, other, engines))


def test_sampled_log_probabilities_are_those_of_training(registry: Registry, folder: Path) -> None:
    built = build(registry, folder, adapter=True)
    tokenizer = load_tokenizer(registry, built.files)
    sampler = PolicySampler(SharedWeights(role_of(built)), tokenizer, registry, {"use": "paged", "max_model_len": 64})
    params = [SamplingParams(max_tokens=COUNT, n=3, seed=seed, logprobs=0) for seed in range(len(PROMPTS))]
    rounds: list[Any] = []
    for seed in (1, 2):
        change(built, seed)
        built.model.train()
        rounds.append(found := sampler.answers(PROMPTS, params))
        assert built.model.training
        assert [len(group) for group in found] == [3] * len(PROMPTS)
        for prompt, group in zip(PROMPTS, found, strict=True):
            for answer in group:
                assert answer.finished == (answer.ids[-1] == 0)
                assert answer.finished or len(answer.ids) == COUNT
                ids = torch.tensor([*prompt, *answer.ids])
                with torch.no_grad():
                    hidden = built.model(ids, built.context([len(ids)], torch.arange(len(ids))))
                    table = built.model.head(hidden).log_softmax(-1)
                wanted = table[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None]).squeeze(1)
                torch.testing.assert_close(torch.tensor(answer.logps), wanted, rtol=1e-4, atol=1e-4)
    assert rounds[0] != rounds[1]
    assert sampler.answers(PROMPTS, params) == rounds[1]
    sampler.close()


def test_gradients_flow_after_a_rollout(registry: Registry, folder: Path) -> None:
    """What the engine computes without recording leaves nothing behind that training could trip over."""
    built = build(registry, folder)
    sampler = PolicySampler(
        SharedWeights(role_of(built)),
        load_tokenizer(registry, built.files),
        registry,
        {"use": "paged", "max_model_len": 64},
    )
    sampler.answers(PROMPTS, [SamplingParams(max_tokens=2)] * len(PROMPTS))
    ids = torch.tensor(PROMPTS[0])
    built.model.head(built.model(ids, built.context([len(ids)], torch.arange(len(ids))))).sum().backward()
    assert all(parameter.grad is not None for parameter in built.model.parameters() if parameter.requires_grad)
    sampler.close()
