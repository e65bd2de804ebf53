from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.nn import Embedding, Head
from pegboard.nn.loss import cross_entropy_sum, sequence_sums, token_logps, token_loss_sum
from pegboard.ops import kernel_table

TOKENS, HIDDEN, VOCAB = 11, 6, 13


@pytest.fixture
def head() -> Head:
    torch.manual_seed(0)
    head = Head(HIDDEN, VOCAB).double()
    torch.nn.init.normal_(head.weight)
    return head


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(TOKENS, HIDDEN, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def targets() -> Tensor:
    targets = torch.randint(0, VOCAB, (TOKENS,))
    targets[[0, 4, 10]] = -100
    return targets


def rows_of(targets: Tensor) -> Tensor:
    return (targets >= 0).nonzero().squeeze(1)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_cross_entropy_and_gradients(head: Head, hidden: Tensor, targets: Tensor, chunk: int) -> None:
    loss = cross_entropy_sum(hidden, head, targets, rows_of(targets), chunk=chunk)
    wanted = F.cross_entropy(hidden @ head.weight.t(), targets, reduction="sum")
    torch.testing.assert_close(loss, wanted)
    got = torch.autograd.grad(loss * 0.7, [hidden, head.weight])
    for a, b in zip(got, torch.autograd.grad(wanted * 0.7, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", [False, True])
def test_logps_and_gradients(head: Head, hidden: Tensor, targets: Tensor, frozen: bool) -> None:
    rows = rows_of(targets)
    head.requires_grad_(not frozen)
    inputs = [hidden] if frozen else [hidden, head.weight]
    logps = token_logps(hidden, head, targets, rows, chunk=3)
    wanted = (hidden @ head.weight.t()).log_softmax(-1)[rows].gather(1, targets[rows, None]).squeeze(1)
    torch.testing.assert_close(logps, wanted)
    weights = torch.randn_like(wanted)
    got = torch.autograd.grad((logps * weights).sum(), inputs)
    for a, b in zip(got, torch.autograd.grad((wanted * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


def ragged(logps: Tensor, weights: Tensor) -> Tensor:
    """A loss by token with a slope that changes and breaks."""
    return torch.maximum(weights * logps.exp(), 0.3 * logps.square())


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_loss_by_token_and_its_gradients(
    head: Head, hidden: Tensor, targets: Tensor, chunk: int, frozen: bool, softcap: float | None
) -> None:
    rows, head.softcap = rows_of(targets), softcap
    head.requires_grad_(not frozen)
    inputs = [hidden] if frozen else [hidden, head.weight]
    wanted = head(hidden).log_softmax(-1)[rows].gather(1, targets[rows, None]).squeeze(1)
    weights = torch.randn_like(wanted)
    loss, logps = token_loss_sum(hidden, head, targets, rows, lambda found, at: ragged(found, weights[at]), chunk=chunk)
    right = ragged(wanted, weights).sum()
    torch.testing.assert_close(loss, right)
    torch.testing.assert_close(logps, wanted.detach())
    assert not logps.requires_grad
    got = torch.autograd.grad(loss * 0.7, inputs)
    for a, b in zip(got, torch.autograd.grad(right * 0.7, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_by_token_without_gradients(head: Head, hidden: Tensor, targets: Tensor) -> None:
    with torch.no_grad():
        loss, logps = token_loss_sum(hidden, head, targets, rows_of(targets), lambda found, at: found.square())
    torch.testing.assert_close(loss, logps.square().sum())


def summed_logps(hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, chunk: int) -> Tensor:
    return token_logps(hidden, head, targets, rows, chunk=chunk).sum()


def squared_logps(hidden: Tensor, head: Head, targets: Tensor, rows: Tensor, chunk: int = 3) -> Tensor:
    return token_loss_sum(hidden, head, targets, rows, lambda logps, at: logps.square(), chunk=chunk)[0]


@pytest.mark.parametrize(
    ("function", "frozen", "products"),
    [
        (summed_logps, True, (2, 2)),
        (summed_logps, False, (1, 4)),
        (squared_logps, True, (2, 2)),
        (squared_logps, False, (3, 3)),
        (cross_entropy_sum, False, (3, 3)),
    ],
)
def test_logits_are_computed_again_only_where_tokens_are_coupled_and_the_head_is_trained(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    function: Callable[..., Tensor],
    frozen: bool,
    products: tuple[int, int],
) -> None:
    """products: of a chunk with the head, after the forward and after the backward pass: logits, gradient by states, by weights."""
    calls: list[None] = []

    def counted(op: str) -> Callable[..., Tensor]:
        function = getattr(head.kernels, op)

        def count(*arguments: Tensor) -> Tensor:
            calls.append(None)
            found: Tensor = function(*arguments)
            return found

        return count

    head.requires_grad_(not frozen)
    head.kernels = kernel_table({op: counted(op) for op in ("linear", "add_product_")})
    rows = rows_of(targets)
    loss = function(hidden, head, targets, rows, chunk=1)
    forward = len(calls)
    loss.backward()
    assert (forward, len(calls)) == tuple(count * len(rows) for count in products)


def test_sums_by_sequence() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    ids = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    assert sequence_sums(values, torch.tensor([0, 2, 4, 6]), ids, 4).tolist() == [1, 6, 0, 8]


@pytest.mark.parametrize("function", [cross_entropy_sum, token_logps, squared_logps])
def test_no_rows_is_legal(head: Head, hidden: Tensor, targets: Tensor, function: object) -> None:
    out = function(hidden, head, targets, torch.empty(0, dtype=torch.int64)).sum()  # type: ignore[operator]
    out.backward()
    assert out.item() == 0
    assert hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("function", [cross_entropy_sum, token_logps, squared_logps])
def test_no_tensor_spans_all_tokens_and_the_vocabulary(function: object) -> None:
    tokens, vocab, chunk = 64, 500, 8
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor))
            return out

    head = Head(4, vocab)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(tokens, 4, requires_grad=True)
    with Watch():
        function(
            hidden, head, torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens), chunk=chunk
        ).sum().backward()  # type: ignore[operator]
    assert max(sizes) == vocab * chunk


def test_tied_head_sends_its_gradient_to_the_embedding(hidden: Tensor, targets: Tensor) -> None:
    embedding = Embedding(VOCAB, HIDDEN).double()
    torch.nn.init.normal_(embedding.weight)
    cross_entropy_sum(hidden, Head(HIDDEN, VOCAB, embedding), targets, rows_of(targets)).backward()
    assert embedding.weight.grad is not None and embedding.weight.grad.any()


def test_half_precision_sums_in_float32(head: Head, hidden: Tensor, targets: Tensor) -> None:
    rows = rows_of(targets)
    narrow = hidden.detach().bfloat16().requires_grad_()
    small = Head(HIDDEN, VOCAB).bfloat16()
    small.weight.data.copy_(head.weight.data)
    loss = cross_entropy_sum(narrow, small, targets, rows)
    loss.backward()
    assert loss.dtype == torch.float32
    assert narrow.grad is not None and narrow.grad.dtype == torch.bfloat16
    wanted = F.cross_entropy(narrow.double() @ small.weight.double().t(), targets, reduction="sum")
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-2, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [3, 100])
def test_a_soft_cap_on_logits(hidden: Tensor, targets: Tensor, chunk: int, frozen: bool) -> None:
    torch.manual_seed(0)
    head = Head(HIDDEN, VOCAB, softcap=1.5).double()
    torch.nn.init.normal_(head.weight).requires_grad_(not frozen)
    rows, parameters = rows_of(targets), [hidden, *(() if frozen else (head.weight,))]
    logits = 1.5 * torch.tanh(hidden @ head.weight.t() / 1.5)
    torch.testing.assert_close(head(hidden), logits)
    wanted = F.cross_entropy(logits[rows], targets[rows], reduction="none")
    for loss, right in (
        (cross_entropy_sum(hidden, head, targets, rows, chunk=chunk), wanted.sum()),
        (token_logps(hidden, head, targets, rows, chunk=chunk).square().sum(), wanted.square().sum()),
    ):
        torch.testing.assert_close(loss, right)
        mine = torch.autograd.grad(loss, parameters)
        for a, b in zip(mine, torch.autograd.grad(right, parameters, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b)
