"""Families that are broken, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from pegboard.nn import CausalLM, Linear, dense_causal_lm
from pegboard.plugins.spec import PluginSpec
from pegboard.types import ParallelRule
from pegboard_sdk.conformance import ModelSuite
from pegboard_sdk.toys.model import TINY, TinyFamily

CONFIG = {**TINY, "vocab_size": 61}


class Mutant(ModelSuite):
    __test__ = False
    configs: ClassVar[dict[str, Any]] = {"tiny": CONFIG}
    caught_by: ClassVar[tuple[str, ...]] = ()
    architectures: ClassVar[list[str]] = ["TinyForCausalLM"]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True
        cls.spec = PluginSpec(
            kind="model",
            target=f"{__name__}:{cls.__name__}.Broken",
            capabilities={"architectures": cls.architectures, "model_types": ["tiny"]},
        )


class TestSound(Mutant):
    Broken = TinyFamily


class Altered(TinyFamily):
    """The tiny family with `alter(model)`."""

    def build(self, config):
        model = super().build(config)
        self.alter(model)
        return model


class TestUntestedArchitecture(Mutant):
    caught_by = ("test_every_architecture_has_a_config",)
    architectures: ClassVar[list[str]] = ["TinyForCausalLM", "TinyForOtherThings"]
    Broken = TinyFamily


class TestAllocates(Mutant):
    caught_by = ("test_builds_without_weights",)

    class Broken(TinyFamily):
        def build(self, config):
            with torch.device("cpu"):
                return super().build(config)


class TestChangesTheConfig(Mutant):
    caught_by = ("test_builds_without_weights",)

    class Broken(TinyFamily):
        def build(self, config):
            config.setdefault("rope_theta", 1e4)
            return super().build(config)


class TestOwnNames(Mutant):
    caught_by = ("test_parameter_names",)

    class Broken(Altered):
        def alter(self, model):
            model.extra = Linear(2, 2)


class TestNumbersLayersFromOne(Mutant):
    caught_by = ("test_parameter_names",)

    class Broken(Altered):
        def alter(self, model):
            model.model.layers = torch.nn.ModuleDict({str(i + 1): x for i, x in enumerate(model.model.layers)})


class TestDropsOwnTensors(Mutant):
    caught_by = ("test_rename_keeps_own_names",)

    class Broken(TinyFamily):
        def rename(self, name):
            return None if name.endswith("norm.weight") else name


class TestGuessesKeys(Mutant):
    caught_by = ("test_missing_key_is_named",)

    class Broken(TinyFamily):
        def build(self, config):
            return super().build({**CONFIG, **config})


class TestTargetsOfAnotherFamily(Mutant):
    caught_by = ("test_adapters_have_targets",)

    class Broken(TinyFamily):
        def adapter_targets(self, config):
            return ("qkv_proj", "o_proj")


class TestNoRuleForNorms(Mutant):
    caught_by = ("test_parallel_plan_covers_every_parameter",)

    class Broken(TinyFamily):
        def parallel_plan(self, config):
            return super().parallel_plan(config)[:-1]


class TestUnevenUnit(Mutant):
    caught_by = ("test_parallel_plan_covers_every_parameter",)

    class Broken(TinyFamily):
        def parallel_plan(self, config):
            return (ParallelRule("*.q_proj.weight", "column", 7), *super().parallel_plan(config))


class TestSplitsWeightsButNotBiases(Mutant):
    caught_by = ("test_parallel_plan_covers_every_parameter",)

    class Broken(TinyFamily):
        def build(self, config):
            return dense_causal_lm(config, qkv_bias=True)

        def parallel_plan(self, config):
            return (ParallelRule("*.bias", "replicate"), *super().parallel_plan(config))


def respec(model: CausalLM, **changes: Any) -> None:
    for attention in model.attentions:
        attention.spec = replace(attention.spec, **changes)


class TestEveryLayerIsTheFirst(Mutant):
    caught_by = ("test_attention_layers", "test_cached_decode_equals_forward")

    class Broken(Altered):
        def alter(self, model):
            respec(model, layer=0)


class TestMixesCacheGroups(Mutant):
    caught_by = ("test_attention_layers",)

    class Broken(Altered):
        def alter(self, model):
            model.attentions[0].spec = replace(model.attentions[0].spec, window=4)


class TestSeesTheFuture(Mutant):
    caught_by = ("test_later_tokens_change_nothing_before_them", "test_cached_decode_equals_forward")

    class Broken(Altered):
        def alter(self, model):
            respec(model, causal=False)


class Forward(TinyFamily):
    """The tiny family with a forward pass of its own."""

    model: ClassVar[type[CausalLM]]

    def build(self, config):
        model = super().build(config)
        model.__class__ = self.model
        return model


class TestCountsPositionsItself(Mutant):
    caught_by = ("test_cached_decode_equals_forward",)

    class Broken(Forward):
        class model(CausalLM):
            def forward(self, input_ids, ctx):
                ctx.positions = torch.arange(len(input_ids))
                return super().forward(input_ids, ctx)


class TestLooksAtTheRowBefore(Mutant):
    caught_by = ("test_ragged_batch_equals_one_by_one",)

    class Broken(Forward):
        class model(CausalLM):
            def embed(self, input_ids, ctx):
                x = super().embed(input_ids, ctx)
                return x + 0.1 * x.roll(1, 0)


class TestGivesAllRows(Mutant):
    caught_by = ("test_logits_indices",)

    class Broken(Forward):
        class model(CausalLM):
            def forward(self, input_ids, ctx):
                ctx.logits_indices = None
                return super().forward(input_ids, ctx)


class TestNoSpans(Mutant):
    caught_by = ("test_embedding_spans",)

    class Broken(Forward):
        class model(CausalLM):
            def embed(self, input_ids, ctx):
                return self.model.embed_tokens(input_ids)


class TestUnusedParameter(Mutant):
    caught_by = ("test_backward_reaches_every_parameter",)

    class Broken(Altered):
        def alter(self, model):
            model.model.layers[0].spare = Linear(2, 2)


class TestHoldsTheEmbeddingConstant(Mutant):
    caught_by = ("test_gradients_equal_finite_differences",)

    class Broken(Forward):
        class model(CausalLM):
            def embed(self, input_ids, ctx):
                x = super().embed(input_ids, ctx)
                return 0.5 * x + 0.5 * x.detach()


class TestWidens(Mutant):
    caught_by = ("test_computes_in_bfloat16",)

    class Broken(Forward):
        class model(CausalLM):
            def forward(self, input_ids, ctx):
                return super().forward(input_ids, ctx).double()
