from __future__ import annotations

import torch
from torch import Tensor

from pegboard_sdk.toys.model import hidden_states, random_model
from pegboard_trainer.noise import EmbeddingNoise


def test_noise_is_bounded_by_the_length_of_each_sequence_and_only_in_training() -> None:
    built = random_model()
    ids = torch.randint(260, (10,), generator=torch.Generator().manual_seed(0))
    clean = built.model.model.embed_tokens(ids).detach()
    seen: list[Tensor] = []
    EmbeddingNoise(built.model, alpha=5.0)
    built.model.model.embed_tokens.register_forward_hook(lambda module, inputs, x: seen.append(x.detach()))
    lens = [7, 3]
    built.model.train()
    hidden_states(built, ids, lens)
    difference = (seen[-1] - clean).abs()
    for rows, length in ((slice(0, 7), 7), (slice(7, 10), 3)):
        limit = 5.0 / (length * clean.shape[-1]) ** 0.5
        assert difference[rows].max() <= limit
        assert difference[rows].max() > 0.8 * limit
        assert 0.35 * limit < difference[rows].mean() < 0.65 * limit
    with torch.no_grad():
        hidden_states(built, ids, lens)
    assert seen[-1].equal(clean)
    built.model.eval()
    hidden_states(built, ids, lens)
    assert seen[-1].equal(clean)
