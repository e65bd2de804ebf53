"""A model role for tests of objectives, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pegboard.nn import Head
from pegboard.types import Batch

VOCABULARY, HIDDEN, LONGEST = 13, 6, 64


class ToyRole:
    """A bigram model: the state of a row is the sum of a vector of its id and one of its position.

    trained: whether its parameters take gradients. scale: of the head, and so of the logits.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        trained: bool = True,
        device: str = "cpu",
        dtype: torch.dtype = torch.float64,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def table(rows: int, factor: float = 1.0) -> Tensor:
            values = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64) * factor
            return values.to(device, dtype).requires_grad_(trained)

        self._ids, self._positions = table(VOCABULARY), table(LONGEST)
        self._head = Head(HIDDEN, VOCABULARY)
        self._head.weight = nn.Parameter(table(VOCABULARY, scale).detach(), requires_grad=trained)

    def hidden(self, batch: Batch) -> Tensor:
        """[T, HIDDEN]."""
        return self._ids[batch.input_ids] + self._positions[batch.positions]

    @property
    def head(self) -> Head:
        """The output head."""
        return self._head

    def parameters(self) -> list[Tensor]:
        """Tables of ids and positions, and the head's weight."""
        return [self._ids, self._positions, self._head.weight]


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Batch:
    """Lay sequences end to end. Each is its ids and a mask, True where the token is to be predicted."""
    ids: list[int] = []
    targets: list[int] = []
    for tokens, mask in sequences:
        ids += tokens
        following = [t if learned else -100 for t, learned in zip(tokens, mask, strict=True)][1:]
        targets += [*following, -100]
    lens = [len(tokens) for tokens, _ in sequences]
    rows = [row for row, target in enumerate(targets) if target != -100]
    return Batch(
        torch.tensor(ids, dtype=torch.int64),
        torch.cat([torch.arange(length) for length in lens]),
        torch.tensor(targets, dtype=torch.int64),
        lens,
        torch.tensor(rows, dtype=torch.int64),
    )


def join_batches(a: Batch, b: Batch) -> Batch:
    """Return both as one batch. Extras are joined along their first dimension (tensors) or end to end (lists)."""
    before = len(a.seq_lens)
    examples = int(a.example_ids.max()) + 1 if before else 0
    extras = {
        key: torch.cat((value, b.extras[key])) if isinstance(value, Tensor) else [*value, *b.extras[key]]
        for key, value in a.extras.items()
    }
    return Batch(
        torch.cat((a.input_ids, b.input_ids)),
        torch.cat((a.positions, b.positions)),
        torch.cat((a.targets, b.targets)),
        [*a.seq_lens, *b.seq_lens],
        torch.cat((a.target_rows, b.target_rows + len(a.input_ids))),
        extras,
        {part: torch.cat((found, b.parts[part] + before)) for part, found in a.parts.items()},
        torch.cat((a.sequence_ids, b.sequence_ids + before)),
        torch.cat((a.example_ids, b.example_ids + examples)),
    )
