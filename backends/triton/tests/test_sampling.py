"""Tokens of the kernels are those of the engine's own ops, whatever is asked of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pegboard_engine.sampling import ops
from pegboard_triton.sampling import choose, logprobs, penalties

DTYPES = [torch.float32, torch.bfloat16]


def logits_of(
    rows: int, vocab: int, dtype: torch.dtype, device: torch.device, *, scale: float = 3.0, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, vocab, generator=generator) * scale
    return made.to(device, dtype)


def settings(rows: int, vocab: int, *names: str, seed: int = 1) -> dict[str, Any]:
    """Draw what rows ask; of each a third asks nothing."""
    source = np.random.default_rng(seed)

    def asked() -> Any:
        return source.random(rows) < 2 / 3

    made: dict[str, Any] = {
        "temperature": np.where(asked(), source.uniform(0.3, 2, rows), 0).astype(np.float32),
        "uniform": source.random(rows),
    }
    if "top_k" in names:
        made["top_k"] = np.where(asked(), source.integers(1, vocab + 1, rows), 0).astype(np.int32)
    if "top_p" in names:
        made["top_p"] = np.where(asked(), source.uniform(0.01, 0.999, rows), 1).astype(np.float32)
    if "min_p" in names:
        made["min_p"] = np.where(asked(), source.uniform(0, 0.3, rows), 0).astype(np.float32)
    return made


def check(logits: Tensor, given: dict[str, Any]) -> None:
    kept = logits.clone()
    ids, values = choose.sample(logits, **given)
    wanted, most = ops.sample(logits.cpu().float(), **given)
    assert torch.equal(values.cpu(), most)
    assert ids.cpu().tolist() == wanted.tolist()
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 7, 128, 1000])
def test_the_greatest(vocab: int, dtype: torch.dtype, device: torch.device) -> None:
    check(logits_of(3, vocab, dtype, device), {})


def test_of_equal_logits_the_first_is_the_greatest(device: torch.device) -> None:
    logits = torch.full((4, 300), -2.0, device=device)
    for row, places in enumerate(([5, 200], [299], [131, 132, 7], [])):
        logits[row, places] = 1.5
    ids, values = choose.sample(logits)
    assert ids.tolist() == [5, 299, 7, 0]
    assert values.tolist() == [1.5, 1.5, 1.5, -2.0]


def test_a_row_that_is_not_finite_says_so(device: torch.device) -> None:
    logits = torch.zeros(4, 200, device=device)
    logits[0, 130] = float("nan")
    logits[1, 3] = float("inf")
    logits[2] = float("-inf")
    ids, values = choose.sample(logits, **settings(4, 200, "top_k", "top_p"))
    assert values.isfinite().tolist() == [False, False, False, True]
    assert ((ids >= 0) & (ids < 200)).all()


@pytest.mark.parametrize("names", [(), ("top_k",), ("top_p",), ("min_p",), ("top_k", "top_p", "min_p")])
@pytest.mark.parametrize(("vocab", "dtype"), [(1, torch.float32), (129, torch.bfloat16), (700, torch.float32)])
def test_what_is_drawn(vocab: int, dtype: torch.dtype, names: tuple[str, ...], device: torch.device) -> None:
    rows = 6 if device.type == "cpu" else 200
    check(logits_of(rows, vocab, dtype, device), settings(rows, vocab, *names))


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_flat_and_peaked_rows(scale: float, device: torch.device) -> None:
    check(logits_of(4, 700, torch.float32, device, scale=scale), settings(4, 700, "top_k", "top_p", "min_p", seed=3))


@pytest.mark.parametrize("names", [("top_k",), ("top_p",), ("top_k", "top_p"), ("top_p", "min_p")])
def test_more_than_the_best_blocks_hold(
    names: tuple[str, ...], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "KEPT", 2)
    given = settings(3, 600, *names, seed=5)
    given["temperature"][:] = 1.7
    if "top_k" in names:
        given["top_k"] = np.array([3, 200, 0], np.int32)
    check(logits_of(3, 600, torch.float32, device, scale=1.0), given)


def test_ties_stay_or_go_together(device: torch.device) -> None:
    logits = torch.zeros(6, 600, device=device)
    logits[:, 300:] = 1.0
    given = settings(6, 600)
    given["temperature"][:], given["top_k"] = 1, np.array([1, 5, 300, 301, 0, 2], np.int32)
    given["top_p"] = np.array([1, 0.1, 1, 0.99, 0.5, 1], np.float32)
    check(logits, given)


def test_rows_of_a_wider_tensor(device: torch.device) -> None:
    whole = logits_of(5, 400, torch.float32, device)
    check(whole[:, 3:330], settings(5, 327, "top_k", "top_p"))
    check(whole[1:1], {})


def test_what_is_typical_is_left_to_torch(device: torch.device) -> None:
    given = settings(4, 300)
    given["temperature"][:] = 1
    check(logits_of(4, 300, torch.float32, device), given | {"typical_p": np.full(4, 0.5, np.float32)})


@pytest.mark.parametrize(("vocab", "dtype"), [(1, torch.float32), (129, torch.bfloat16), (5000, torch.float32)])
def test_log_probabilities_and_ranks(vocab: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = logits_of(4, vocab, dtype, device)
    logits[1, vocab // 2 :] = float("-inf")
    logits[2] = logits[2, 0]
    ids = torch.tensor([vocab - 1, 0, vocab // 3, vocab // 2], device=device)
    base, ranks = logprobs.logprob_sums(logits, ids)
    exact = logits.double().logsumexp(1)
    torch.testing.assert_close(base, exact, rtol=0, atol=2e-6)
    assert ranks.tolist() == ops.logprob_sums(logits.cpu(), ids.cpu())[1].tolist()


@pytest.mark.parametrize("proposed", [0, 3])
def test_penalties(proposed: int, device: torch.device) -> None:
    vocab, slots = 300, 5
    source = np.random.default_rng(2)
    counts = torch.from_numpy(
        source.integers(0, 3, (slots, vocab)).astype(np.int32) % 3 * (source.random((slots, vocab)) < 0.2)
    )
    counts = counts.int() + torch.from_numpy((source.random((slots, vocab)) < 0.1) * ops.PROMPT).int()
    rows, places = torch.tensor([4, 0, 2]), torch.tensor([1, 1, 3])
    strength = torch.tensor([[1.3, 0.0, 0.0], [1.0, 0.5, 0.25], [0.8, -0.5, 0.1]])
    listed = torch.arange(vocab).repeat(3, 1)
    ahead = torch.tensor([[7, 7, -1], [-1, -1, -1], [299, 0, 5]]) if proposed else None
    given = [rows, counts, places, strength, listed, ahead]
    logits = logits_of(6, vocab, torch.float32, torch.device("cpu"))
    expected = ops.penalise_(logits.clone(), *given)
    own = logits.to(device)
    found = penalties.penalise_(own, *(x if x is None else x.to(device) for x in given))
    assert found is own
    torch.testing.assert_close(own.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("names", [(), ("top_k",), ("top_p",), ("top_k", "top_p", "min_p")])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_whole_vocabularies(names: tuple[str, ...], scale: float, device: torch.device) -> None:
    for seed, vocab in enumerate((151936, 128256, 262144)):
        given = settings(64, vocab, *names, seed=seed)
        if "top_k" in names:
            given["top_k"] = np.where(given["top_k"] % 2, given["top_k"], given["top_k"] % 64)
        check(logits_of(64, vocab, torch.bfloat16, device, scale=scale, seed=seed), given)
