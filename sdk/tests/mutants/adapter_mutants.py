"""Adapters that are broken, each in one way."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pegboard_acme.adapter import AcmeAdapter, _adapted, _put
from pegboard_acme.layers import ScaledLinear
from pegboard_acme.options import Options
from pegboard_acme.plugin import SPEC
from torch import nn

from pegboard.errors import ConfigError
from pegboard.interfaces.adapter import AdapterSlots
from pegboard_sdk.conformance import AdapterSuite


class Mutant(AdapterSuite):
    __test__ = False
    spec = SPEC
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeAdapter]]
    no_match: ClassVar[dict[str, Any]] = {"targets": ["nothing_here"]}
    servable: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmeAdapter:
        return self.broken(Options(**options))


class TestTrainsNormsToo(Mutant):
    caught_by = ("test_attach_swaps_and_freezes", "test_tensors_are_what_is_trained")

    class broken(AcmeAdapter):
        def attach(self, model):
            names = super().attach(model)
            model.model.norm.requires_grad_(True)
            return names


class TestNamesWhatIsNotThere(Mutant):
    caught_by = ("test_attach_swaps_and_freezes",)

    class broken(AcmeAdapter):
        def attach(self, model):
            return [f"{name}.scale" for name in super().attach(model)]


class TestMatchesNothingInSilence(Mutant):
    caught_by = ("test_no_match_is_an_error",)

    class broken(AcmeAdapter):
        def attach(self, model):
            try:
                return super().attach(model)
            except ConfigError:
                return []


class TestDrawsAnew(Mutant):
    caught_by = ("test_first_values_follow_from_the_seed", "test_identity_at_start")

    class broken(AcmeAdapter):
        def initialise(self, model, *, seed, dtype):
            for module in _adapted(model).values():
                module.scale = nn.Parameter(torch.rand(module.scale.shape))


class TestStaysEmpty(Mutant):
    caught_by = ("test_first_values_follow_from_the_seed",)

    class broken(AcmeAdapter):
        def initialise(self, model, *, seed, dtype):
            super().initialise(model, seed=seed, dtype=dtype)
            module = next(iter(_adapted(model).values()))
            module.spare = nn.Parameter(torch.empty(3, device="meta"), requires_grad=False)


class TestNeverCounts(Mutant):
    caught_by = ("test_adapter_changes_the_model",)

    class broken(AcmeAdapter):
        def attach(self, model):
            names = super().attach(model)
            for module in _adapted(model).values():
                module.enabled = False
            return names


class TestOwnNames(Mutant):
    caught_by = ("test_tensors_are_what_is_trained",)

    class broken(AcmeAdapter):
        def tensors(self, model):
            return {name.removeprefix("base_model."): tensor for name, tensor in super().tensors(model).items()}


class TestHidesATensor(Mutant):
    caught_by = ("test_tensors_are_what_is_trained",)

    class broken(AcmeAdapter):
        def tensors(self, model):
            return dict(list(super().tensors(model).items())[1:])


class Layered(AcmeAdapter):
    """Uses another layer."""

    layer: ClassVar[type[ScaledLinear]]

    def attach(self, model):
        names = super().attach(model)
        for name, module in _adapted(model).items():
            _put(model, name, self.layer(module.base))
        return names


class TestWearsTheBaseDown(Mutant):
    caught_by = ("test_training_changes_the_adapter_alone",)

    class broken(Layered):
        class layer(ScaledLinear):
            def forward(self, x, ctx=None):
                self.base.weight.data.mul_(1.0001)
                return super().forward(x, ctx)


class TestNeverLearns(Mutant):
    caught_by = ("test_training_changes_the_adapter_alone",)

    class broken(Layered):
        class layer(ScaledLinear):
            def forward(self, x, ctx=None):
                return self.base(x, ctx) * self.scale.detach().squeeze(1).to(x.dtype) + 0 * self.scale.sum()


class TestWrongGradient(Mutant):
    caught_by = ("test_gradients_equal_finite_differences",)

    class broken(Layered):
        class layer(ScaledLinear):
            def forward(self, x, ctx=None):
                scale = self.scale.squeeze(1).to(x.dtype)
                return self.base(x, ctx) * (2 * scale - scale.detach())


class TestLoadsNothing(Mutant):
    caught_by = ("test_load_restores",)

    class broken(AcmeAdapter):
        def load(self, model, tensors):
            pass


class TestStopsAtTheFirstProblem(Mutant):
    caught_by = ("test_load_lists_all_problems",)

    class broken(AcmeAdapter):
        def load(self, model, tensors):
            own = self.tensors(model)
            super().load(model, {**own, **{name: t for name, t in tensors.items() if name in own and t.ndim == 2}})


class TestLoadsBeforeItChecks(Mutant):
    caught_by = ("test_load_lists_all_problems",)

    class broken(AcmeAdapter):
        def load(self, model, tensors):
            own = self.tensors(model)
            for name, tensor in tensors.items():
                if name in own and own[name].shape == tensor.shape:
                    own[name].copy_(tensor)
            super().load(model, tensors)


class TestForgetsTheBase(Mutant):
    caught_by = ("test_config_is_pefts",)

    class broken(AcmeAdapter):
        def config(self, base):
            return {**super().config(base), "base_model_name_or_path": None}


class TestConfigOfSets(Mutant):
    caught_by = ("test_config_is_pefts",)

    class broken(AcmeAdapter):
        def config(self, base):
            return {**super().config(base), "target_modules": {"k_proj"}}


class TestStaysOffAfterAnError(Mutant):
    caught_by = ("test_disabled",)

    class broken(AcmeAdapter):
        @contextmanager
        def disabled(self, model):
            before = [module.enabled for module in _adapted(model).values()]
            for module in _adapted(model).values():
                module.enabled = False
            yield
            for module, enabled in zip(_adapted(model).values(), before, strict=True):
                module.enabled = enabled


class TestInnerContextSwitchesOn(Mutant):
    caught_by = ("test_disabled",)

    class broken(AcmeAdapter):
        @contextmanager
        def disabled(self, model):
            for module in _adapted(model).values():
                module.enabled = False
            try:
                yield
            finally:
                for module in _adapted(model).values():
                    module.enabled = True


class TestMergesNothing(Mutant):
    caught_by = ("test_merge",)

    class broken(AcmeAdapter):
        def merge(self, model):
            for name, module in _adapted(model).items():
                _put(model, name, module.base)


class TestStaysAdapted(Mutant):
    caught_by = ("test_merge",)

    class broken(AcmeAdapter):
        def merge(self, model):
            for module in _adapted(model).values():
                module.merge()
                module.enabled = False


class Rows(nn.Module):
    """Scales each row by the factors of its slot; the last factors are those of no slot."""

    additive = False

    def __init__(self, base, num_slots):
        super().__init__()
        self.base, self.out_features = base, base.out_features
        self.scales = torch.ones(num_slots + 1, base.out_features, dtype=torch.float64)

    def forward(self, x, ctx=None):
        return self.base(x, ctx) * self.scales[self.rows(ctx)]

    def rows(self, ctx):
        return ctx.adapter_slots


class Slots(AdapterSlots):
    layer = Rows

    def __init__(self, model, num_slots):
        self.model, self.num_slots, self.loaded = model, num_slots, {}

    def load(self, slot, tensors, config):
        self.unload(slot)
        self.loaded[slot] = {name.split(".", 2)[2].rpartition(".")[0]: tensor for name, tensor in tensors.items()}
        for name, scale in self.loaded[slot].items():
            module = self.model.get_submodule(name)
            if not isinstance(module, Rows):
                module = self.layer(module, self.num_slots)
                _put(self.model, name, module)
            module.scales[slot] = scale.squeeze(1)

    def unload(self, slot):
        for name in self.loaded.pop(slot, ()):
            module = self.model.get_submodule(name)
            module.scales[slot] = 1
            if not any(name in names for names in self.loaded.values()):
                _put(self.model, name, module.base)


class Served(AcmeAdapter):
    """Can be one of several."""

    slots = Slots

    @classmethod
    def serving(cls, model, *, num_slots, max_rank, dtype):
        return cls.slots(model, num_slots)


class TestSound(Mutant):
    servable = True
    broken = Served


class TestServesTheWholeBatchOne(Mutant):
    servable = True
    caught_by = ("test_slots_serve_each_row_its_adapter",)

    class broken(Served):
        class slots(Slots):
            class layer(Rows):
                def rows(self, ctx):
                    return ctx.adapter_slots.max().expand(len(ctx.adapter_slots))


class TestKeepsItsLayers(Mutant):
    servable = True
    caught_by = ("test_empty_slots_leave_the_plain_model",)

    class broken(Served):
        class slots(Slots):
            def unload(self, slot):
                for name in self.loaded.pop(slot, ()):
                    self.model.get_submodule(name).scales[slot] = 1


class TestServesWhatItCannot(Mutant):
    caught_by = ("test_what_cannot_be_served_says_so",)
    broken = Served
