"""The chunked sums against autograd over whole logits, and that no tensor is larger than a chunk of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pegboard.nn import Head
from pegboard.ops import kernel_table
from pegboard_distill.chunked import Distillation, DistillSums, distill_sum

TOKENS, VOCABULARY = 9, 12


def head_of(width: int, vocabulary: int, seed: int, softcap: float | None = None) -> Head:
    head = Head(width, vocabulary, softcap=softcap).double()
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
    return head


class Case:
    """A student and a wider teacher over the same tokens."""

    def __init__(
        self, *, vocabularies: tuple[int, int] = (VOCABULARY, VOCABULARY), softcap: float | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(TOKENS, 4, dtype=torch.float64, generator=generator).requires_grad_()
        self.taught = torch.randn(TOKENS, 6, dtype=torch.float64, generator=generator)
        self.targets = torch.randint(min(vocabularies), (TOKENS,), generator=generator)
        self.rows = torch.tensor([0, 2, 3, 5, 8])
        self.head, self.teacher = head_of(4, vocabularies[0], 1, softcap), head_of(6, vocabularies[1], 2, softcap)

    def sums(self, how: Distillation, chunk: int = 2) -> DistillSums:
        return distill_sum(self.hidden, self.head, self.taught, self.teacher, self.targets, self.rows, how, chunk=chunk)

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [self.hidden, self.head.weight])

    def plain(self, how: Distillation) -> tuple[Tensor, Tensor]:
        """KL(p ‖ q) τ² and cross entropy, by torch's own losses over all logits."""
        logits = self.head(self.hidden)[self.rows]
        shared = min(self.head.weight.shape[0], self.teacher.weight.shape[0])
        p = (self.teacher(self.taught)[self.rows, :shared] / how.temperature).softmax(-1).detach()
        log_q = (logits[:, :shared] / how.temperature).log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_q, p, reduction="sum") * how.temperature**2
        return kl, torch.nn.functional.cross_entropy(logits, self.targets[self.rows], reduction="sum")


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("weight", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("vocabularies", [(12, 12), (12, 10), (10, 12)])
def test_sums_and_gradients(chunk: int, weight: float, vocabularies: tuple[int, int]) -> None:
    case, how = Case(vocabularies=vocabularies), Distillation(temperature=2.5, weight=weight)
    found = case.sums(how, chunk)
    kl, cross_entropy = case.plain(how)
    torch.testing.assert_close(found.divergence, kl.detach())
    torch.testing.assert_close(found.cross_entropy, cross_entropy.detach())
    wanted = weight * kl + (1 - weight) * cross_entropy
    torch.testing.assert_close(found.loss, wanted)
    for mine, right in zip(case.gradients(found.loss * 0.3), case.gradients(wanted * 0.3), strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "symmetric_kl", "js"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients_of_all_divergences_with_soft_caps(divergence: str, top_k: int | None) -> None:
    case = Case(softcap=3.0)
    how = Distillation(divergence, 0.4, 1.7, top_k, 0.6)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        head = Head(4, VOCABULARY, softcap=3.0)
        del head.weight
        head.weight = weight  # type: ignore[assignment]  # not a parameter: the check differentiates by it
        return distill_sum(hidden, head, case.taught, case.teacher, case.targets, case.rows, how, chunk=2).loss

    weight = case.head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (case.hidden, weight))


def test_agreement_counts_equal_first_choices() -> None:
    case = Case()
    same = (case.head(case.hidden).argmax(-1) == case.teacher(case.taught).argmax(-1))[case.rows].sum()
    assert case.sums(Distillation()).agreement == same
    case.taught, case.teacher = case.hidden.detach(), case.head
    assert case.sums(Distillation()).agreement == len(case.rows)
    assert case.sums(Distillation()).divergence.abs() < 1e-12


def test_no_rows_is_legal() -> None:
    case = Case()
    case.rows = case.rows[:0]
    loss = case.sums(Distillation(weight=0.5)).loss
    assert loss == 0
    assert not any(gradient.any() for gradient in case.gradients(loss))


def test_no_gradient_is_computed_for_what_is_frozen() -> None:
    case = Case()
    calls: list[tuple[int, ...]] = []
    linear = case.head.kernels.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(tuple(weight.shape))
        return linear(x, weight, bias)

    case.head.kernels = kernel_table({"linear": counted})
    case.head.requires_grad_(False)
    case.sums(Distillation(), 100).loss.backward()
    assert calls == [(VOCABULARY, 4), (4, VOCABULARY)]
    assert case.teacher.weight.grad is None


class Watch(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
@pytest.mark.parametrize("top_k", [None, 5])
def test_no_tensor_spans_all_tokens_and_the_vocabulary(divergence: str, top_k: int | None) -> None:
    tokens, vocabulary, chunk = 64, 500, 8
    hidden, taught = torch.randn(tokens, 4, requires_grad=True), torch.randn(tokens, 6)
    heads = [Head(4, vocabulary), Head(6, vocabulary)]
    for head in heads:
        torch.nn.init.normal_(head.weight)
    how = Distillation(divergence, top_k=top_k, weight=0.5)
    targets, rows = torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens)
    with Watch() as watch:
        distill_sum(hidden, heads[0], taught, heads[1], targets, rows, how, chunk=chunk).loss.backward()
    assert watch.largest == vocabulary * chunk


def test_half_precision_sums_in_float32() -> None:
    case = Case()
    narrow = case.hidden.detach().bfloat16().requires_grad_()
    heads = [case.head.bfloat16(), case.teacher.bfloat16()]
    how = Distillation(weight=0.5)
    out = distill_sum(narrow, heads[0], case.taught.bfloat16(), heads[1], case.targets, case.rows, how)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert narrow.grad is not None and narrow.grad.dtype == torch.bfloat16
    heads = [head.double() for head in heads]
    exact = distill_sum(
        narrow.double(), heads[0], case.taught.bfloat16().double(), heads[1], case.targets, case.rows, how
    )
    torch.testing.assert_close(out.loss.double(), exact.loss, rtol=2e-2, atol=0)
