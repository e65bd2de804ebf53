"""Experts of a mixture in 4 bits: all of a layer lie together, for ops that compute a mixture at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.nn.experts import ExpertGroup, QuantisedExperts, by_expert
from pegboard.nn.grouped import expert_rows, one_operation
from pegboard.ops import KernelTable, kernel_table, register
from pegboard_nf4.layers import Nf4Linear
from pegboard_nf4.matrix import BLOCK, Nf4Matrix
from pegboard_nf4.ops import backward, forward


class Stored(NamedTuple):
    """The matrices [N, K] of all experts, `parts` (P) of each, such as gate and up: tensors as of an `Nf4Matrix`, one behind the other.

    codes: uint8 [E, P N K / 2]. scales: [E, P blocks]. nested: float32 [E, P ceil(blocks / 256)]; offset: float32 [E, P]; both None where
    scales are float32.
    """

    codes: Tensor
    scales: Tensor
    nested: Tensor | None
    offset: Tensor | None

    def matrix(self, expert: int, part: int, parts: int, columns: int) -> Nf4Matrix:
        """Return matrix `part` of an expert, of so many columns."""
        tensors = [None if held is None else held[expert].chunk(parts)[part] for held in self]
        codes, scales, nested, offset = tensors
        assert codes is not None and scales is not None
        shape = (codes.numel() * 2 // columns, columns)
        return Nf4Matrix(shape, codes, scales, nested, None if offset is None else offset[0])


@register(
    "nf4_moe",
    "(gate_up: codes [E, 2 I H / 2] uint8, scales [E, 2 I H / 64], of gate first; nested [E, 2 ceil(I H / 16384)] float32 | None, offset "
    "[E, 2] float32 | None; down: the same of one matrix [H, I], not two [I, H]; x, ids, weights, activation: as of op `moe`) -> [T, H]",
)
@one_operation(
    "nf4_moe(Tensor gate_up, Tensor gate_up_scales, Tensor? gate_up_nested, Tensor? gate_up_offset, Tensor down, Tensor down_scales, "
    'Tensor? down_nested, Tensor? down_offset, Tensor x, Tensor ids, Tensor weights, str activation="silu") -> Tensor'
)
def nf4_moe(
    gate_up: Tensor,
    gate_up_scales: Tensor,
    gate_up_nested: Tensor | None,
    gate_up_offset: Tensor | None,
    down: Tensor,
    down_scales: Tensor,
    down_nested: Tensor | None,
    down_offset: Tensor | None,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    activation: str = "silu",
) -> Tensor:
    """Op `moe` with NF4 weights; each expert that a row uses is widened once. Has no gradient."""
    first = Stored(gate_up, gate_up_scales, gate_up_nested, gate_up_offset)
    second = Stored(down, down_scales, down_nested, down_offset)
    hidden, inner = x.shape[1], down.shape[1] * 2 // x.shape[1]

    def both(rows: Tensor, expert: int) -> Tensor:
        return torch.cat([forward(rows, first.matrix(expert, part, 2, hidden), F.linear) for part in range(2)], -1)

    return by_expert(
        x,
        ids,
        weights,
        activation,
        both,
        lambda rows, expert: forward(rows, second.matrix(expert, 0, 1, inner), F.linear),
        len(down),
    )


class _Grouped(torch.autograd.Function):
    """Rows times the matrices of their experts, which keeps nothing but the 4-bit weights: the backward pass widens them again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Stored, parts: int, ends: Tensor, outputs: int) -> Tensor:
        ctx.stored, ctx.parts, ctx.shape = stored, parts, x.shape
        ctx.save_for_backward(ends)
        return _product(x, stored, parts, ends, outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (ends,) = grads, ctx.saved_tensors
        d_x = grad.new_zeros(ctx.shape)
        for expert, start, end in expert_rows(ends):
            for part, own in enumerate(grad[start:end].chunk(ctx.parts, -1)):
                d_x[start:end] += backward(own, ctx.stored.matrix(expert, part, ctx.parts, ctx.shape[1]), F.linear)
        return d_x, None, None, None, None


@register(
    "nf4_grouped",
    "(x [N, K], rows sorted by expert; codes [E, P O K / 2] uint8, scales, nested, offset: of P matrices [O, K] an expert, as of op "
    "`nf4_moe`; P; ends [E] int32, grouped_linear: the op of that name) -> [N, P O]",
)
def nf4_grouped(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    nested: Tensor | None,
    offset: Tensor | None,
    parts: int,
    ends: Tensor,
    grouped_linear: Callable[..., Tensor],
) -> Tensor:
    """Op `grouped_linear` with NF4 weights, an expert's at a time. Differentiable in x."""
    stored, outputs = Stored(codes, scales, nested, offset), codes.shape[1] * 2 // x.shape[1]
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _Grouped.apply(x, stored, parts, ends, outputs)
        return out
    return _product(x, stored, parts, ends, outputs)


def _product(x: Tensor, stored: Stored, parts: int, ends: Tensor, outputs: int) -> Tensor:
    out = x.new_zeros(x.shape[0], outputs)
    for expert, start, end in expert_rows(ends):
        for part, place in enumerate(out[start:end].chunk(parts, -1)):
            place.copy_(forward(x[start:end], stored.matrix(expert, part, parts, x.shape[1]), F.linear))
    return out


class Nf4Experts(QuantisedExperts):
    """The layers of all experts, each of their tensors in one storage: one op computes them, beside adapters too."""

    kernels: KernelTable = kernel_table()
    kind = Nf4Linear
    stored = ("weight", "scales", "nested", "offset")
    _checked = False

    def fuse(self) -> bool:
        self._look()
        if not self._alike:
            return super().fuse()
        forms = {tuple(_form(getattr(base, name)) for name in self.stored) for base in self._flat}
        # In a matrix whose last block is not full, the next one's would begin within a byte or a block.
        if len(forms) > 1 or any(base.in_features * base.out_features % BLOCK for base in self._flat):
            self.unfuse()
            return False
        self._checked = False
        return super().fuse()

    def joint(self, down: ExpertGroup, x: Tensor, ids: Tensor, weights: Tensor, activation: str) -> Tensor | None:
        for group in (self, down):
            if isinstance(group, Nf4Experts):
                group._together()
        # Where gradients are asked for, the two products have them.
        return None if self._tensors and torch.is_grad_enabled() else super().joint(down, x, ids, weights, activation)

    def op(self, *values: Any) -> Tensor:
        out: Tensor = self.kernels.nf4_moe(*values)
        return out

    def product(self, x: Tensor, ends: Tensor) -> Tensor | None:
        if not self._together():
            return super().product(x, ends)
        out: Tensor = self.kernels.nf4_grouped(
            x, *self._tensors.values(), len(self.names), ends, self.kernels.grouped_linear
        )
        return out

    def _together(self) -> bool:
        """Whether all weights lie in the shared storages. A checkpoint's weights of another form than its first ones' do not."""
        self._look()
        if self._tensors and not self._checked:
            self._checked = all(
                getattr(base, name) is None if held is None else _within(getattr(base, name), held)
                for name, held in self._tensors.items()
                for base in self._flat
            )
            if not self._checked:
                self._checked = self.fuse()
        return bool(self._tensors)


def _form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _within(tensor: Tensor | None, storage: Tensor) -> bool:
    return tensor is not None and tensor.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr()
