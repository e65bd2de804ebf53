"""What is learned from: rows, examples, packed batches, and what an objective makes of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(slots=True)
class Row:
    """One tokenized sequence.

    input_ids: token ids of the whole sequence.
    mask: True where the token is to be predicted (its own loss counts); same length. mask[0] is ignored: nothing predicts the first token.
    extras: what an objective needs beside them, one value for the sequence.
    part: what the sequence is in an example of several, such as "chosen" or "rejected"; may be empty in an example of one.
        A "prompt" is to be answered: there is nothing to learn in it.
    per_token: numbers by name, one for each token, such as the log-probabilities at which it was sampled; same length as input_ids.
    """

    input_ids: list[int]
    mask: list[bool]
    extras: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    per_token: Mapping[str, Sequence[float]] = field(default_factory=dict)


Example = tuple[Row, ...]
"""Sequences that stay together: they are kept or left out as one, and lie side by side in one batch, in this order."""


@dataclass(slots=True)
class Batch:
    """A packed training batch: N sequences laid end to end, of E examples.

    input_ids: [T] int64. positions: [T] int64, restarting at each sequence.
    targets: [T] int64, targets[t] is the id that row t must predict, or -100 where no loss counts (the last row of a sequence always).
    seq_lens: [N] lengths on the host, sum == T.
    target_rows: [M] int64, the rows whose targets are not -100, found on the host while packing so that no device has to count.
    extras: what an objective needs beside them, by name. Of a sequence's `Row.extras`: a tensor [N] where all values are numbers
        (bool, int64 or float32), a list [N] where they are anything else (None for a sequence without it). Of `Row.per_token`: a
        float32 tensor [T] aligned with `targets`, so that entry t is about the token that row t predicts (0 in a sequence's last row).
    parts: `Row.part` -> [P] int64, the sequences that are that part, in order. Where every example has one of each part,
        parts["chosen"][i] and parts["rejected"][i] are of the same example.
    sequence_ids: [T] int64, the sequence of each row. Given by `seq_lens` when left out.
    example_ids: [N] int64, the example of each sequence, from 0 and ascending. Left out: each sequence is one.
    target_lens: [N] on the host, how many of `target_rows` each sequence has. Counted when left out.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    seq_lens: list[int]
    target_rows: Tensor
    extras: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)
    sequence_ids: Tensor = None  # type: ignore[assignment]
    example_ids: Tensor = None  # type: ignore[assignment]
    target_lens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        numbers = torch.arange(len(self.seq_lens))
        lengths = torch.tensor(self.seq_lens, dtype=torch.int64)
        if len(self.target_lens) != len(self.seq_lens):
            ends = torch.searchsorted(self.target_rows.cpu(), lengths.cumsum(0))
            self.target_lens = ends.diff(prepend=ends.new_zeros(1)).tolist()
        for name, implied in (("sequence_ids", numbers.repeat_interleave(lengths)), ("example_ids", numbers)):
            if getattr(self, name) is None:
                setattr(self, name, implied.to(self.input_ids.device))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        import torch

        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return Batch(
            moved(self.input_ids),
            moved(self.positions),
            moved(self.targets),
            self.seq_lens,
            moved(self.target_rows),
            {name: moved(value) for name, value in self.extras.items()},
            {name: moved(value) for name, value in self.parts.items()},
            moved(self.sequence_ids),
            moved(self.example_ids),
            self.target_lens,
        )

    def sequences(self, first: int, last: int) -> Batch:
        """Return sequences first … last - 1 as a batch of their own, of which each is an example, without extras and parts."""
        start, stop = sum(self.seq_lens[:first]), sum(self.seq_lens[:last])
        low, high = sum(self.target_lens[:first]), sum(self.target_lens[:last])
        return Batch(
            self.input_ids[start:stop],
            self.positions[start:stop],
            self.targets[start:stop],
            self.seq_lens[first:last],
            self.target_rows[low:high] - start,
            target_lens=self.target_lens[first:last],
        )


@dataclass(slots=True)
class LossOutput:
    """What an objective returns for one batch.

    sum: scalar, summed over tokens (or pairs), never a mean; float32, attached to the graph.
    metrics: name -> (sum, count), each a scalar tensor or number; reduced only when logged.
    """

    sum: Tensor
    metrics: dict[str, tuple[Any, Any]] = field(default_factory=dict)
