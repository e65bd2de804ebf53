"""What layers keep for their backward passes, and that gradients are the same whatever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pegboard.build import BuiltModel
from pegboard.ops import KernelTable
from pegboard_sdk.toys.model import logits, random_model
from pegboard_trainer.config import MemorySection
from pegboard_trainer.memory import save_memory

LENS = (7, 5)


def losses(built: BuiltModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 200, (sum(LENS),), generator=generator)
    return logits(built, ids, LENS).square().sum()


def gradients(built: BuiltModel, loss: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(built.model.parameters()), **options))


def recomputed(built: BuiltModel) -> BuiltModel:
    save_memory(built, MemorySection(recompute="cheap"))
    return built


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Count what a pass keeps, storages once."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def test_gradients_are_the_same_to_the_last_bit() -> None:
    plain, other = random_model(), recomputed(random_model())
    expected = gradients(plain, losses(plain))
    loss = losses(other)
    for options in ({"retain_graph": True}, {}):
        found = gradients(other, loss, **options)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_results_of_cheap_operations_are_not_kept() -> None:
    plain, other = random_model(), recomputed(random_model())
    sizes = [kept_bytes(lambda built=built: losses(built)) for built in (plain, other)]  # type: ignore[misc]
    config, rows = plain.files.config, sum(LENS)
    # Of each layer: two norms of the hidden size, and what the gate gives.
    least = plain.dtype.itemsize * rows * 2 * (2 * config["hidden_size"] + config["intermediate_size"])
    assert sizes[0] - sizes[1] >= least


def test_a_result_that_was_written_into_is_kept() -> None:
    plain, other = random_model(), random_model()
    for built in (plain, other):
        layer: Any = built.model.model.layers[0]
        if built is other:
            save_memory(built, MemorySection(recompute="cheap"))
        gated = layer.mlp.kernels.silu_mul
        table = {**vars(layer.mlp.kernels), "silu_mul": lambda x, gated=gated: gated(x).mul_(2)}
        layer.mlp.kernels = KernelTable(**table)
    pairs = zip(gradients(other, losses(other)), gradients(plain, losses(plain)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
