"""Over a cache, what a layer adds is added by the norm behind it."""

from __future__ import annotations

import torch

from pegboard.nn import RMSNorm
from pegboard_sdk.toys.model import TINY, cache_of, random_model, step_context


def test_additions_are_one_with_the_norms_that_follow(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    built = random_model(config={**TINY, "num_hidden_layers": 3}, phase="decode")
    specs = built.model.attention_specs
    layout = built.attention.layout(specs[0], 3, 4, built.dtype)
    ids = torch.arange(7)
    calls: list[RMSNorm] = []
    add = RMSNorm.add
    monkeypatch.setattr(RMSNorm, "add", lambda norm, *xs: (calls.append(norm), add(norm, *xs))[1])

    def states(rows: torch.Tensor | None = None) -> torch.Tensor:
        ctx = step_context(built, cache_of(layout, 4), [0, 0], [4, 3], [[1], [2]])
        ctx.logits_indices = rows
        out: torch.Tensor = built.model(ids, ctx)
        return out

    chained = states()
    # Two in each layer but the first, which has nothing to add yet, and the last norm of all.
    assert len(calls) == 2 * 3
    hook = built.model.model.layers[1].register_forward_hook(lambda *_: None)
    plain = states()
    hook.remove()
    assert len(calls) == 2 * 3 + 3
    torch.testing.assert_close(chained, plain, rtol=1e-12, atol=1e-12)
    rows = torch.tensor([3, 6])
    torch.testing.assert_close(states(rows), plain[rows], rtol=1e-12, atol=1e-12)
