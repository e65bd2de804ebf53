"""The suite of kind `model`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.errors import ModelError
from pegboard.nn import CausalLM
from pegboard.types import EmbeddingSpan, ForwardContext, ParallelRule, ParallelStyle
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite
from pegboard_sdk.toys.model import cache_of, hidden_states, logits, positions_of, random_model, step_context

LENGTH = 21
PAGE_SIZE = 4
# In float64 two orders of summation differ by far less.
EXACT = 1e-9


@standard
class ModelSuite(PluginSuite):
    """Models of toy size with random weights, computed in float64 over the reference attention.

    configs: a toy-sized config.json by any name, at least one for each architecture that the front door names. Hidden sizes
    of up to a hundred, two or three layers, and a vocabulary of a few hundred keep the suite quick.
    required_keys: keys of config.json without which nothing can be built.
    """

    kind = "model"
    configs: ClassVar[Mapping[str, Mapping[str, Any]]]
    required_keys: ClassVar[Iterable[str]] = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test that takes `case` once for each config."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", list(self.configs))

    def empty(self, case: str) -> CausalLM:
        """Return the model of a config as the family builds it, without weights."""
        with torch.device("meta"):
            model: CausalLM = self.create().build(copy.deepcopy(self.configs[case]))
        return model

    def built(self, case: str, **more: Any) -> BuiltModel:
        """Return the model of a config with random weights, as the core builds it."""
        return random_model(self.spec, self.configs[case], **more)

    def ids(self, case: str, length: int = LENGTH) -> Tensor:
        """Return random token ids, [length] int64."""
        generator = torch.Generator().manual_seed(11)
        return torch.randint(int(self.configs[case]["vocab_size"]), (length,), generator=generator)

    def test_every_architecture_has_a_config(self) -> None:
        """Each architecture that the front door names is tested, and no other."""
        tested = {name for config in self.configs.values() for name in config["architectures"]}
        named = self.spec.capabilities["architectures"]
        assert isinstance(named, list) and tested == set(named)

    def test_adapters_have_targets(self, case: str) -> None:
        """Where an adapter names no layers, those that the family does are linear layers of the model."""
        targets = self.create().adapter_targets(copy.deepcopy(self.configs[case]))
        linear = [name for name, module in self.empty(case).named_modules() if hasattr(module, "in_features")]
        ends = {name.rpartition(".")[2] for name in linear}
        assert targets and not isinstance(targets, str)
        assert set(targets) <= ends, f"the linear layers end in {', '.join(sorted(ends))}"

    def test_builds_without_weights(self, case: str) -> None:
        """Under the meta device nothing is allocated, and the config stays as it was."""
        config = copy.deepcopy(dict(self.configs[case]))
        with torch.device("meta"):
            model = self.create().build(config)
        assert isinstance(model, CausalLM)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert config == self.configs[case], "build() changed the config"

    def test_parameter_names(self, case: str) -> None:
        """Names are those of a Hugging Face checkpoint: below `model.` or `lm_head.`, layers numbered from 0."""
        model = self.empty(case)
        names = [name for name, _ in model.named_parameters()]
        assert [name for name in names if not name.startswith(("model.", "lm_head."))] == []
        assert "model.embed_tokens.weight" in names
        assert ("lm_head.weight" in names) is not model.tied
        layers = {int(found[1]) for name in names if (found := re.match(r"model\.layers\.(\d+)\.", name))}
        assert layers == set(range(int(self.configs[case]["num_hidden_layers"])))

    def test_rename_keeps_own_names(self, case: str) -> None:
        """A checkpoint that has the model's own names is taken as it is."""
        family = self.create()
        assert [n for n, _ in self.empty(case).named_parameters() if family.rename(n) != n] == []

    def test_missing_key_is_named(self, case: str) -> None:
        """A config without a key that must be there raises ModelError naming it, with a fix."""
        for key in self.required_keys:
            config = {name: value for name, value in self.configs[case].items() if name != key}
            with torch.device("meta"), pytest.raises(ModelError, match=key) as caught:
                self.create().build(config)
            assert caught.value.fix

    def test_parallel_plan_covers_every_parameter(self, case: str) -> None:
        """Each parameter matches a rule whose unit divides what it splits; a bias splits as its weight does."""
        plan = self.create().parallel_plan(self.configs[case])
        styles: dict[str, str] = {}
        for name, parameter in self.empty(case).named_parameters():
            rule: ParallelRule | None = next((r for r in plan if fnmatchcase(name, r.pattern)), None)
            assert rule is not None, f"no rule of parallel_plan() matches {name}"
            assert rule.style in get_args(ParallelStyle) and rule.unit >= 1
            if rule.style in ("column", "row"):
                assert parameter.shape[0 if rule.style == "column" else 1] % rule.unit == 0, name
            styles[name] = rule.style
        for name, style in styles.items():
            if name.endswith(".bias"):
                weight = styles[name.removesuffix("bias") + "weight"]
                assert style == ("column" if weight == "column" else "replicate"), f"{name} with a {weight} weight"

    def test_attention_layers(self, case: str) -> None:
        """Attention layers are numbered in order, and those of one cache group need the same of the cache."""
        model = self.empty(case)
        groups: dict[int, set[Any]] = {}
        for index, spec in enumerate(model.attention_specs):
            assert spec.layer == index and spec.num_heads % spec.num_kv_heads == 0
            cache = model.cache_spec(index, torch.float32)
            assert (cache.num_kv_heads, cache.head_dim, cache.window) == (spec.num_kv_heads, spec.head_dim, spec.window)
            groups.setdefault(spec.group, set()).add(cache)
        assert all(len(kinds) == 1 for kinds in groups.values())

    def test_later_tokens_change_nothing_before_them(self, case: str) -> None:
        """The model is causal."""
        built, ids = self.built(case), self.ids(case)
        changed = ids.clone()
        changed[-1] = (ids[-1] + 1) % int(self.configs[case]["vocab_size"])
        a, b = logits(built, ids), logits(built, changed)
        assert a.shape == (LENGTH, built.model.vocab_size)
        _close(a[:-1], b[:-1])
        assert not torch.allclose(a[-1], b[-1])

    def test_cached_decode_equals_forward(self, case: str) -> None:
        """A prompt, a chunk and single tokens over the paged cache give the logits of one forward pass."""
        built, ids = self.built(case), self.ids(case)
        whole = logits(built, ids)
        specs = built.model.attention_specs
        layout = built.attention.layout(specs[0], len(specs), PAGE_SIZE, built.dtype)
        cache = cache_of(layout, pages=10)
        pages, parts, old = [[7, 2, 9, 4, 1, 8]], [], 0
        for new in (9, 5, *[1] * (LENGTH - 14)):
            ctx = step_context(built, cache, [old], [new], pages)
            ctx.extents = torch.full((new,), LENGTH)
            parts.append(built.model.head(built.model(ids[old : old + new], ctx)))
            old += new
        _close(torch.cat(parts), whole)

    def test_ragged_batch_equals_one_by_one(self, case: str) -> None:
        """Sequences laid end to end are computed as each alone."""
        built, ids, lens = self.built(case), self.ids(case), [5, 1, 15]
        together = logits(built, ids, lens)
        _close(together, torch.cat([logits(built, part) for part in ids.split(lens)]))

    def test_logits_indices(self, case: str) -> None:
        """Only the rows that are asked for come out, in the order asked."""
        built, ids = self.built(case), self.ids(case)
        whole = hidden_states(built, ids)
        ctx = self.context(built)
        ctx.logits_indices = torch.tensor([LENGTH - 1, 0, 7])
        _close(built.model(ids, ctx), whole[[LENGTH - 1, 0, 7]])

    def test_embedding_spans(self, case: str) -> None:
        """Rows may bring embeddings of their own; those of other ids make the model read these ids."""
        built, ids = self.built(case), self.ids(case)
        other = ids.flip(0)
        ctx = self.context(built)
        ctx.spans = [EmbeddingSpan(4, built.model.embed(other[4:9], self.context(built)))]
        mixed = torch.cat((ids[:4], other[4:9], ids[9:]))
        _close(built.model(ids, ctx), hidden_states(built, mixed))

    def test_backward_reaches_every_parameter(self, case: str) -> None:
        """Each parameter has a gradient that is finite and not zero everywhere."""
        built = self.built(case)
        logits(built, self.ids(case)).square().sum().backward()
        for name, parameter in built.model.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all() and parameter.grad.any(), (
                f"the gradient of {name} is zero or not finite"
            )

    def test_gradients_equal_finite_differences(self, case: str) -> None:
        """Along one random direction through all parameters."""
        built, ids = self.built(case), self.ids(case, 6)
        parameters = list(built.model.parameters())
        generator = torch.Generator().manual_seed(1)
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1 for p in parameters]
        grads = torch.autograd.grad(logits(built, ids).square().mean(), parameters)
        slope = sum(float((g * way).sum()) for g, way in zip(grads, ways, strict=True))
        values = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                for parameter, way in zip(parameters, ways, strict=True):
                    parameter.add_(way, alpha=step)
                values.append(float(logits(built, ids).square().mean()))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)

    def test_computes_in_bfloat16(self, case: str) -> None:
        """States keep the dtype of the weights and stay near those of float64."""
        exact, narrow = hidden_states(self.built(case), self.ids(case)), self.built(case, dtype="bfloat16")
        out = hidden_states(narrow, self.ids(case))
        assert out.dtype == torch.bfloat16
        assert (out.double() - exact).norm() < 0.1 * exact.norm()

    def context(self, built: BuiltModel) -> ForwardContext:
        """Return the context of one sequence of the usual length, without a cache."""
        return built.context([LENGTH], positions_of([LENGTH]))


def _close(mine: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(mine, right, rtol=EXACT, atol=EXACT)
