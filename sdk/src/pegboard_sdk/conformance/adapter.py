"""The suite of kind `adapter`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError
from pegboard.interfaces.adapter import Adapter, AdapterSlots
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite
from pegboard_sdk.toys.model import TINY, TinyFamily, logits, random_model

IDS = torch.tensor([5, 250, 17, 17, 99, 3, 0, 140])
PREFIX = "base_model.model."


@standard
class AdapterSuite(PluginSuite):
    """The tiny model with the adapter in it, in float64. Options should adapt some of its layers and leave some plain.

    no_match: options that match no module of any model; None where the adapter has no choice of modules.
    identity_at_start: whether the adapted model computes as the plain one before training.
    servable: whether `serving` gives slots; False where a model computes with one adapter at a time, which loading must then say.
    mergeable: whether `merge` works on full-precision weights.
    exact_gradients: whether autograd's gradient is that of the computation, nothing being held constant for it.
    tolerance: of the merged model's logits, relative to the adapted one's.
    """

    kind = "adapter"
    no_match: ClassVar[Mapping[str, Any] | None] = None
    identity_at_start: ClassVar[bool] = True
    servable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    exact_gradients: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-6

    def adapted(self, *, seed: int = 0, **options: Any) -> tuple[BuiltModel, Adapter]:
        """Return the tiny model with the adapter in it, as the core builds it for training."""
        adapter: Adapter = self.create(**options)
        return random_model(adapter=adapter, seed=seed), adapter

    def trained(self, noise: int = 3) -> tuple[BuiltModel, Adapter]:
        """Return the same with every parameter of the adapter away from its first value, by noise of a seed."""
        built, adapter = self.adapted()
        generator = torch.Generator().manual_seed(noise)
        moved = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            for name, tensor in adapter.tensors(built.model).items()
        }
        adapter.load(built.model, moved)
        return built, adapter

    def served(self) -> tuple[BuiltModel, AdapterSlots, list[tuple[BuiltModel, Adapter]]]:
        """Return a plain model with empty slots, and two trained adapters, each in a model of its own."""
        plain, trained = random_model(phase="decode"), [self.trained(3), self.trained(4)]
        slots = type(trained[0][1]).serving(plain.model, num_slots=3, max_rank=64, dtype=torch.float64)
        return plain, slots, trained

    def test_attach_swaps_and_freezes(self) -> None:
        """The names that `attach` returns are modules of the plain model; nothing that the plain model had is trained."""
        plain = random_model().model
        with torch.device("meta"):
            model = TinyFamily().build(TINY)
        names = self.create().attach(model)
        assert names and len(set(names)) == len(names)
        assert set(names) <= {name for name, _ in plain.named_modules()}
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        assert frozen == sum(p.numel() for p in plain.parameters())

    def test_no_match_is_an_error(self) -> None:
        """Options that mean no module raise ConfigError with a fix."""
        if self.no_match is None:
            self.skip("no_match is None: the adapter has no choice of modules")
        with pytest.raises(ConfigError) as caught:
            self.adapted(**self.no_match)
        assert caught.value.fix

    def test_first_values_follow_from_the_seed(self) -> None:
        """The same seed gives the same values, all of them finite and on the model's device."""
        (a, adapter), (b, _) = self.adapted(seed=4), self.adapted(seed=4)
        first, second = adapter.tensors(a.model), adapter.tensors(b.model)
        assert first and set(first) == set(second)
        for name, tensor in first.items():
            assert tensor.device == a.device and tensor.isfinite().all(), name
            assert torch.equal(tensor, second[name]), name
        assert not any(parameter.is_meta for parameter in a.model.parameters())

    def test_identity_at_start(self) -> None:
        """Before training the adapted model computes as the plain one."""
        self.needs("identity_at_start", "the adapter starts elsewhere")
        _close(logits(self.adapted()[0], IDS), logits(random_model(), IDS), 1e-9)

    def test_adapter_changes_the_model(self) -> None:
        """Parameters away from their first values change the logits."""
        assert not torch.allclose(logits(self.trained()[0], IDS), logits(random_model(), IDS))

    def test_tensors_are_what_is_trained(self) -> None:
        """`tensors` gives all trainable parameters and no other, under PEFT's names, ready to be written."""
        built, adapter = self.adapted()
        tensors = adapter.tensors(built.model)
        assert sorted(t.numel() for t in tensors.values()) == sorted(
            p.numel() for p in _trainable(built.model).values()
        )
        assert [name for name in tensors if not name.startswith(PREFIX)] == []
        from safetensors.torch import save

        assert save(dict(tensors))  # raises where tensors are not contiguous or share memory

    def test_training_changes_the_adapter_alone(self) -> None:
        """A few steps lower a loss, change every tensor of the adapter, and leave the base weights as they were, bit by bit."""
        built, adapter = self.adapted()
        frozen = {name: p.clone() for name, p in built.model.named_parameters() if not p.requires_grad}
        before = {name: t.clone() for name, t in adapter.tensors(built.model).items()}
        optimizer = torch.optim.Adam(_trainable(built.model).values(), lr=1e-2)
        losses = []
        for _ in range(4):
            loss = nn.functional.cross_entropy(logits(built, IDS)[:-1], IDS[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        assert all(torch.equal(p, frozen[name]) for name, p in built.model.named_parameters() if name in frozen)
        assert [name for name, t in adapter.tensors(built.model).items() if torch.equal(t, before[name])] == []

    def test_load_restores(self) -> None:
        """What `tensors` gives, `load` takes: the other model computes the same."""
        built, adapter = self.trained()
        saved = {name: tensor.clone() for name, tensor in adapter.tensors(built.model).items()}
        other, fresh = self.adapted()
        assert not all(torch.equal(t, saved[name]) for name, t in fresh.tensors(other.model).items())
        fresh.load(other.model, saved)
        assert all(torch.equal(t, saved[name]) for name, t in fresh.tensors(other.model).items())
        _close(logits(other, IDS), logits(built, IDS), 1e-12)
        assert _trainable(other.model), "after load() nothing is trained"

    def test_load_lists_all_problems(self) -> None:
        """A missing, an unexpected and a mis-shaped tensor are named in one ModelError, and nothing is loaded."""
        built, adapter = self.trained()
        before = {name: tensor.clone() for name, tensor in adapter.tensors(built.model).items()}
        assert len(before) > 1, "let the options adapt more than one module"
        (missing, _), (wrong, tensor), *_ = before.items()
        given = {name: t + 1 for name, t in before.items() if name != missing}
        given |= {wrong: torch.zeros(*tensor.shape, 2), f"{PREFIX}no.such.weight": torch.zeros(1)}
        with pytest.raises(ModelError) as caught:
            adapter.load(built.model, given)
        assert all(name in str(caught.value) for name in (missing, wrong, f"{PREFIX}no.such.weight"))
        assert all(torch.equal(t, before[name]) for name, t in adapter.tensors(built.model).items())

    def test_config_is_pefts(self) -> None:
        """adapter_config.json is JSON, names PEFT's type and the base."""
        _, adapter = self.adapted()
        config = adapter.config("owner/base")
        assert json.loads(json.dumps(config)) == config
        assert config["base_model_name_or_path"] == "owner/base"
        assert isinstance(config["peft_type"], str) and config["peft_type"].isupper()

    def test_disabled(self) -> None:
        """Inside `disabled` the model computes as without the adapter, and afterwards as before, after an error too."""
        built, adapter = self.trained()
        with_adapter = logits(built, IDS)
        with adapter.disabled(built.model):
            _close(logits(built, IDS), logits(random_model(), IDS), 1e-9)
            with adapter.disabled(built.model):
                pass
            _close(logits(built, IDS), logits(random_model(), IDS), 1e-9)
        _close(logits(built, IDS), with_adapter, 1e-12)
        with pytest.raises(ZeroDivisionError), adapter.disabled(built.model):
            raise ZeroDivisionError
        _close(logits(built, IDS), with_adapter, 1e-12)

    def test_merge(self) -> None:
        """The merged model is a plain one, of the plain names, and computes as the adapted one."""
        self.needs("mergeable")
        built, adapter = self.trained()
        wanted = logits(built, IDS).detach()
        adapter.merge(built.model)
        plain = random_model().model
        assert {n: p.shape for n, p in built.model.named_parameters()} == {
            n: p.shape for n, p in plain.named_parameters()
        }
        assert {n: type(m) for n, m in built.model.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
        _close(logits(built, IDS), wanted, self.tolerance)

    def test_slots_serve_each_row_its_adapter(self) -> None:
        """In one pass over rows of two adapters and of none, each sequence computes as in the model that has its adapter alone."""
        self.needs("servable", "one adapter at a time")
        plain, slots, trained = self.served()
        right = [logits(built, IDS).detach() for built, _ in trained]
        for slot, (built, adapter) in zip((2, 0), trained, strict=True):
            slots.load(slot, adapter.tensors(built.model), adapter.config("owner/base"))
        chosen = (2, -1, 0, 2)
        count = len(IDS)
        ctx = plain.context([count] * len(chosen), torch.arange(count).repeat(len(chosen)))
        ctx.adapter_slots = torch.tensor(chosen).repeat_interleave(count)
        with torch.no_grad():
            out = plain.model.head(plain.model(IDS.repeat(len(chosen)), ctx)).split(count)
        wanted = {2: right[0], 0: right[1], -1: logits(random_model(), IDS).detach()}
        for slot, mine in zip(chosen, out, strict=True):
            _close(mine, wanted[slot], self.tolerance)

    def test_empty_slots_leave_the_plain_model(self) -> None:
        """Rows with an empty slot compute as the plain model, and with no adapter left every module is what it was."""
        self.needs("servable", "one adapter at a time")
        plain, slots, ((built, adapter), _) = self.served()
        before = dict(plain.model.named_modules())
        slots.load(1, adapter.tensors(built.model), adapter.config("owner/base"))
        ctx = plain.context([len(IDS)], torch.arange(len(IDS)))
        ctx.adapter_slots = torch.zeros(len(IDS), dtype=torch.int64)
        with torch.no_grad():
            _close(plain.model.head(plain.model(IDS, ctx)), logits(random_model(), IDS).detach(), 1e-12)
        slots.unload(1)
        slots.unload(1)
        assert dict(plain.model.named_modules()) == before

    def test_what_cannot_be_served_says_so(self) -> None:
        """An adapter that must be alone is refused when its slots are asked for or it is loaded, with a fix."""
        if self.servable:
            self.skip("servable is True")
        with pytest.raises(ConfigError) as caught:
            _, slots, ((built, adapter), _) = self.served()
            slots.load(0, adapter.tensors(built.model), adapter.config("owner/base"))
        assert caught.value.fix

    def test_gradients_equal_finite_differences(self) -> None:
        """Along one random direction through the adapter's parameters, as far as their dtype tells."""
        self.needs("exact_gradients", "some of what the adapter computes is a constant for the gradient")
        built, _ = self.trained()
        parameters = list(_trainable(built.model).values())
        generator = torch.Generator().manual_seed(6)
        ways = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in parameters]
        grads = torch.autograd.grad(logits(built, IDS).square().mean(), parameters)
        slope = sum(float((g.double() * way.double()).sum()) for g, way in zip(grads, ways, strict=True))
        values = []
        with torch.no_grad():
            for step in (1e-3, -2e-3):
                for parameter, way in zip(parameters, ways, strict=True):
                    parameter.add_(way, alpha=step)
                values.append(float(logits(built, IDS).square().mean()))
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=1e-2)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _close(mine: Tensor, right: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(mine, right, rtol=tolerance, atol=tolerance)
