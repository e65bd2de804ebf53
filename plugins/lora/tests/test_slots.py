"""Adapters side by side in one model, against models that have each merged, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError, PegboardError
from pegboard.nn import Linear, LinearGroup
from pegboard_lora import DoraAdapter, LoraAdapter
from pegboard_lora.options import LoraOptions
from pegboard_lora.sites import RowLinear
from pegboard_lora.slots import LoraSlots
from pegboard_sdk.toys.model import logits, positions_of, random_model

CHOICES: list[dict[str, Any]] = [
    {"rank": 3, "alpha": 5, "targets": ["q_proj", "v_proj"]},
    {"rank": 2, "alpha": 7, "targets": "all-linear", "rslora": True, "rank_pattern": {"o_proj": 4}},
    {"rank": 5, "targets": ["k_proj", "down_proj", "layers.1.mlp.gate_proj"], "alpha_pattern": {"k_proj": 3}},
]


class Trained:
    """An adapter with random values, and the model that has it merged."""

    def __init__(self, kind: type[LoraAdapter], seed: int, **options: Any) -> None:
        adapter = kind(LoraOptions(dtype="float64", **options))
        self.model = random_model(adapter=adapter, phase="decode")
        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter.tensors(self.model.model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 3)
        self.tensors = {name: tensor.clone() for name, tensor in adapter.tensors(self.model.model).items()}
        self.config: Mapping[str, Any] = adapter.config("base")
        adapter.merge(self.model.model)


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    return [Trained(LoraAdapter, seed, **options) for seed, options in enumerate(CHOICES)]


@pytest.fixture
def base() -> BuiltModel:
    return random_model(phase="decode")


def slots_of(built: BuiltModel, **changes: Any) -> LoraSlots:
    return LoraAdapter.serving(built.model, **{"num_slots": 4, "max_rank": 8, "dtype": torch.float64, **changes})


@torch.no_grad()
def mixed(built: BuiltModel, ids: Tensor, lens: Sequence[int], which: Sequence[int]) -> Tensor:
    """Logits of sequences laid end to end, each with its slot."""
    ctx = built.context(lens, positions_of(lens))
    ctx.adapter_slots = torch.tensor(which).repeat_interleave(torch.tensor(lens))
    out: Tensor = built.model.head(built.model(ids, ctx))
    return out


@torch.no_grad()
def alone(models: Sequence[BuiltModel], ids: Tensor, lens: Sequence[int], which: Sequence[int]) -> Tensor:
    """The same, each sequence by itself in the model of its slot; the last model is the plain one."""
    pieces = zip(ids.split(list(lens)), which, strict=True)
    return torch.cat([logits(models[index], piece) for piece, index in pieces])


def close(mine: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("lens", "which"),
    [
        ([1] * 9, [0, 1, 2, -1, 0, 1, 1, 2, -1]),
        ([20, 1, 1, 5, 1, 1, 1, 1, 20, 10], [0, 1, 2, -1, 0, 1, 1, 2, 1, 2]),
        ([1, 1, 1, 30, 17, 1], [0, 0, 1, -1, 2, 1]),
        ([4, 7], [1, 1]),
        ([3, 5], [-1, -1]),
        ([1] * 26, [0] * 12 + [1, 2] + [0] * 12),
    ],
    ids=str,
)
def test_each_sequence_computes_as_with_its_adapter_merged(
    base: BuiltModel, trained: list[Trained], lens: list[int], which: list[int], fused: bool
) -> None:
    if not fused:
        for module in base.model.modules():
            if isinstance(module, LinearGroup):
                module.unfuse()
    slots = slots_of(base)
    for slot, one in enumerate(trained):
        slots.load(slot, one.tensors, one.config)
    ids = torch.randint(0, 256, (sum(lens),), generator=torch.Generator().manual_seed(1))
    close(mixed(base, ids, lens, which), alone([*(one.model for one in trained), random_model()], ids, lens, which))


class Packed(Linear):
    """No plain layer, as a quantised one is none."""


def test_groups_of_other_layers_are_adapted_one_by_one(trained: list[Trained]) -> None:
    built = random_model(phase="decode")
    for module in list(built.model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Linear):
                packed = Packed(child.in_features, child.out_features).double()
                packed.weight = child.weight
                setattr(module, name, packed)
            if isinstance(child, LinearGroup):
                child.unfuse()
    slots = slots_of(built)
    for slot, one in enumerate(trained):
        slots.load(slot, one.tensors, one.config)
    attention = built.model.model.layers[0].self_attn
    assert attention.q_proj.site is not attention.v_proj.site
    ids, lens, which = torch.arange(30, 60), [1, 1, 1, 1, 26], [0, 1, -1, 2, 1]
    close(mixed(built, ids, lens, which), alone([*(one.model for one in trained), random_model()], ids, lens, which))


def test_loading_and_unloading_between_passes(base: BuiltModel, trained: list[Trained]) -> None:
    slots, plain = slots_of(base), random_model()
    ids, lens = torch.arange(40, 54), [1, 1, 1, 1, 6, 4]
    which = [0, 3, 0, 3, 3, 0]
    first, second, third = trained
    names = dict(base.model.named_parameters())
    for zero, three in [(first, second), (third, second), (third, None), (None, first), (second, first)]:
        for slot, one in ((0, zero), (3, three)):
            if one is None:
                slots.unload(slot)
            else:
                slots.load(slot, one.tensors, one.config)
        models = [plain if one is None else one.model for one in (zero, None, None, three)]
        close(mixed(base, ids, lens, which), alone(models, ids, lens, which))
    slots.unload(0)
    slots.unload(3)
    slots.unload(3)
    assert not any(isinstance(module, RowLinear) for module in base.model.modules())
    assert {name: id(p) for name, p in base.model.named_parameters()} == {name: id(p) for name, p in names.items()}


def test_only_what_is_targeted_is_wrapped(base: BuiltModel, trained: list[Trained]) -> None:
    slots_of(base).load(2, trained[0].tensors, trained[0].config)
    wrapped = {name for name, module in base.model.named_modules() if isinstance(module, RowLinear)}
    assert wrapped == {f"model.layers.{layer}.self_attn.{leaf}_proj" for layer in (0, 1) for leaf in "qv"}


class Ops(TorchDispatchMode):
    """Counts what is dispatched; views and the like are free and not counted."""

    FREE = frozenset(
        "alias t view slice select transpose detach split unsqueeze expand as_strided _unsafe_view".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in self.FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def layer_ops(built: BuiltModel, which: Sequence[int] | None, repeats: int = 2) -> Counter[str]:
    """What one block of the model dispatches for single rows with these slots; counted when nothing is left to prepare."""
    count = len(which) if which else 6
    layer, ops = built.model.model.layers[0].mlp, Ops()
    x = torch.zeros(count, built.model.hidden_size, dtype=torch.float64)
    for _ in range(repeats):
        ctx = built.context([1] * count, torch.zeros(count, dtype=torch.int64))
        ctx.adapter_slots = None if which is None else torch.tensor(which)
        ops = Ops()
        with torch.inference_mode():
            layer(x, ctx)  # arranges the rows, which is done once a pass
            with ops:
                layer(x, ctx)
    return ops.counts


def test_ops_do_not_grow_with_rows_and_are_the_plain_ones_without_slots(
    base: BuiltModel, trained: list[Trained]
) -> None:
    plain = layer_ops(base, None)
    slots = slots_of(base)
    for slot in range(4):
        slots.load(slot, trained[1].tensors, trained[1].config)
    assert layer_ops(base, None) == layer_ops(base, [-1] * 6) == plain
    few, many = layer_ops(base, [0, 1, 2, 3]), layer_ops(base, [0, 1, 2, 3] * 16)
    assert few == many
    # Two groups of layers: gather, the product with A; then for each of three layers the product with B, its rows put back, a sum.
    assert few - plain == Counter({"index_select": 2 + 3, "bmm": 2 + 3, "add_": 3})
    uneven = layer_ops(base, [0, 1, 2, 3, -1] * 16)
    assert sum((uneven - few).values()) == 2, "a row of zeros below the input, in each group"
    one = layer_ops(base, [1] * 64)
    assert one - plain == Counter({"mm": 2, "addmm_": 3})


def test_many_slots_do_not_copy_weights_at_every_pass(base: BuiltModel, trained: list[Trained]) -> None:
    slots = slots_of(base)
    for slot in range(4):
        slots.load(slot, trained[1].tensors, trained[1].config)
    bank = base.model.model.layers[0].mlp.down_proj.site.bank
    layer_ops(base, [0, 1, 2, 3])
    made = bank.stack((0, 1, 2, 3))
    layer_ops(base, [0, 1, 2] * 5)
    assert list(bank._stacks) == [(0, 1, 2, 3)] and bank.stack((0, 1, 2, 3)) is made
    slots.unload(3)
    for which in ([0, 1], [1, 2], [0, 2]):
        layer_ops(base, which)
    assert list(bank._stacks) == [(1, 2), (0, 2)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_alone(base: BuiltModel, trained: list[Trained], value: float) -> None:
    slots = slots_of(base)
    for slot, one in enumerate(trained):
        slots.load(slot, one.tensors, one.config)
    ids, lens, which = torch.arange(30, 36), [1] * 6, [0, 1, -1, 2, 1, 0]
    right = mixed(base, ids, lens, which)
    with torch.no_grad():
        base.model.model.embed_tokens.weight[31] = value
    found = mixed(base, ids, lens, which)
    others = [0, 2, 3, 4, 5]
    assert found[1].isnan().all()
    assert torch.equal(found[others], right[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_is_near(trained: list[Trained], dtype: torch.dtype) -> None:
    built = random_model(phase="decode", dtype=str(dtype).removeprefix("torch."))
    slots = slots_of(built, dtype=dtype)
    for slot, one in enumerate(trained):
        slots.load(slot, one.tensors, one.config)
    ids, lens, which = torch.arange(60, 100), [1, 1, 1, 1, 20, 16], [0, 1, -1, 2, 1, 0]
    found = mixed(built, ids, lens, which)
    right = alone([*(one.model for one in trained), random_model()], ids, lens, which)
    assert found.dtype == dtype
    # States are of order 1; an update rounds a handful of times a layer.
    assert (found.double() - right).norm() < 60 * torch.finfo(dtype).eps * right.norm()


def test_slow_half_precision_is_multiplied_in_float32(trained: list[Trained]) -> None:
    built = random_model(phase="decode", dtype="bfloat16")
    own = built.model.kernels.linear

    def elsewhere(*args: Any) -> Tensor:
        out: Tensor = own(*args)
        return out

    built.model.kernels.linear = elsewhere
    slots = slots_of(built, dtype=torch.bfloat16)
    for slot, one in enumerate(trained):
        slots.load(slot, one.tensors, one.config)
    site = built.model.model.layers[0].self_attn.q_proj.site
    assert site.bank.dtype == torch.float32
    ids, lens, which = torch.arange(60, 100), [1, 1, 1, 1, 20, 16], [0, 1, -1, 2, 1, 0]
    found = mixed(built, ids, lens, which)
    right = alone([*(one.model for one in trained), random_model()], ids, lens, which)
    assert found.dtype == torch.bfloat16
    assert (found.double() - right).norm() < 60 * 2**-8 * right.norm()


def refuse(slots: LoraSlots, one: Trained, said: str, error: type[PegboardError] = ConfigError, **changes: Any) -> None:
    with pytest.raises(error, match=said) as caught:
        slots.load(changes.pop("slot", 1), changes.pop("tensors", one.tensors), {**one.config, **changes})
    assert caught.value.fix


def test_what_cannot_be_served_is_refused_and_changes_nothing(base: BuiltModel, trained: list[Trained]) -> None:
    slots, (first, second, _) = slots_of(base), trained
    slots.load(1, first.tensors, first.config)
    ids, lens, which = torch.arange(30, 42), [12], [1]
    right = mixed(base, ids, lens, which)
    refuse(slots, Trained(DoraAdapter, 1, rank=2, targets=["q_proj"]), "DoRA")
    refuse(slots, second, "modules_to_save", modules_to_save=["lm_head"])
    refuse(slots, second, "bias='all'", bias="all")
    refuse(slots, second, "peft_type is 'IA3'", peft_type="IA3")
    refuse(slots, second, "lm_head", target_modules=["q_proj", "lm_head"])
    refuse(slots, second, "lora_embedding_A", ModelError, target_modules=["embed_tokens"])
    refuse(
        slots, Trained(LoraAdapter, 1, rank=9, targets=["q_proj"]), "rank for .*q_proj is 9, above max_adapter_rank, 8"
    )
    refuse(slots, second, "there is no slot 4", slot=4)
    name, tensor = next(iter(second.tensors.items()))
    short = {key: value for key, value in second.tensors.items() if key != name}
    refuse(slots, second, f"missing: {name}", ModelError, tensors=short)
    refuse(slots, second, "wrong shape", ModelError, tensors={**second.tensors, name: tensor[:1]})
    refuse(slots, second, "unexpected: stranger", ModelError, tensors={**second.tensors, "stranger": tensor})
    refuse(slots, second, "not finite", ModelError, tensors={**second.tensors, name: tensor * float("inf")})
    assert torch.equal(mixed(base, ids, lens, which), right)


def test_rows_of_another_number_are_a_mistake_of_the_caller(base: BuiltModel, trained: list[Trained]) -> None:
    slots_of(base).load(0, trained[1].tensors, trained[1].config)
    ctx = base.context([3], torch.arange(3))
    ctx.adapter_slots = torch.tensor([0, 0])
    with pytest.raises(RuntimeError, match="3 rows"), torch.no_grad():
        base.model(torch.tensor([1, 2, 3]), ctx)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_memory_of_full_slots_is_told_before(base: BuiltModel, num_slots: int) -> None:
    most = LoraAdapter.serving_bytes(base.model, num_slots=num_slots, max_rank=5, dtype=torch.float64)
    slots = slots_of(base, num_slots=num_slots, max_rank=5)
    one = Trained(LoraAdapter, 1, rank=5, targets="all-linear")
    for slot in range(num_slots):
        slots.load(slot, one.tensors, one.config)
    ids = torch.arange(12) % 7
    for which in ([0, 0, 0], [0, num_slots - 1, -1], [-1, 0, num_slots // 2], list(range(num_slots))):
        mixed(base, ids[: 4 * len(which)], [4] * len(which), which)
    held: dict[int, int] = {}
    for site, _ in slots._sites:
        for tensor in site.bank.tensors():
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    assert sum(held.values()) <= most
    if num_slots == 1:
        # Those of the embeddings beside them.
        assert sum(held.values()) == most - 5 * sum(base.model.model.embed_tokens.weight.shape) * 8
