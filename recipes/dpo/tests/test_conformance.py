from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pegboard.types import Batch
from pegboard_dpo.plugin import DPO_OBJECTIVE, KTO_OBJECTIVE, ORPO_OBJECTIVE, SIMPO_OBJECTIVE
from pegboard_sdk.conformance import ObjectiveSuite
from pegboard_sdk.toys.roles import VOCABULARY, ToyRole, join_batches, pack

EMPTY = torch.zeros(0, dtype=torch.int64)
PARTS = ("desirable", "undesirable", "mismatched")


def answers(seed: int, lengths: Sequence[int], *, learned: bool) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return pack([(tokens, [learned and i > len(tokens) // 3 for i in range(len(tokens))]) for tokens in ids])


def logps_of(role: ToyRole, batch: Batch) -> list[tuple[Tensor, int]]:
    """The log-probability of each answer and its length, from all logits at once."""
    table = (role.hidden(batch) @ role.head.matrix.t()).softmax(-1).log()
    found, start = [], 0
    for length in batch.seq_lens:
        rows = [t for t in range(start, start + length) if batch.targets[t] >= 0]
        found.append((torch.stack([table[t, batch.targets[t]] for t in rows]).sum(), len(rows)))
        start += length
    return found


class Pairs(ObjectiveSuite):
    """Pairs of answers, of different lengths."""

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        batch = answers(seed, (7, 5, 9, 4), learned=learned)
        places = (torch.tensor([0, 3]), torch.tensor([1, 2])) if learned else (EMPTY, EMPTY)
        batch.parts = dict(zip(("chosen", "rejected"), places, strict=True))
        return batch

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        """Loss of a pair by the sums of log-probabilities c, r, of the reference C, R, and the lengths m, n."""
        raise NotImplementedError

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        mine = logps_of(roles["policy"], batch)
        theirs = logps_of(roles["reference"], batch) if "reference" in roles else mine
        total = torch.zeros((), dtype=torch.float64)
        for i, j in zip(batch.parts["chosen"].tolist(), batch.parts["rejected"].tolist(), strict=True):
            (c, m), (r, n), (big_c, _), (big_r, _) = mine[i], mine[j], theirs[i], theirs[j]
            lengths = {"m": torch.tensor(m), "n": torch.tensor(n)}
            total = total + self.pair({"c": c, "r": r, "C": big_c, "R": big_r, **lengths})
        return total


# The bases of suites are not suites themselves.
Pairs.__test__ = False  # type: ignore[attr-defined]


class TestSigmoid(Pairs):
    __test__ = True
    spec = DPO_OBJECTIVE
    roles = ("policy", "reference")
    options: ClassVar[Mapping[str, Any]] = {"beta": 0.3, "label_smoothing": 0.1, "sft": 0.5}

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        c, r, big_c, big_r, m = (policy[name] for name in ("c", "r", "C", "R", "m"))
        x = 0.3 * ((c - big_c) - (r - big_r))
        return -0.9 * logsigmoid(x) - 0.1 * logsigmoid(-x) - 0.5 * c / m


class TestIpo(Pairs):
    __test__ = True
    spec = DPO_OBJECTIVE
    roles = ("policy", "reference")
    options: ClassVar[Mapping[str, Any]] = {"beta": 0.2, "loss": "ipo"}

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        c, r, big_c, big_r, m, n = policy.values()
        return ((c - big_c) / m - (r - big_r) / n - 2.5) ** 2


class TestHinge(Pairs):
    __test__ = True
    spec = DPO_OBJECTIVE
    roles = ("policy", "reference")
    options: ClassVar[Mapping[str, Any]] = {"beta": 0.05, "loss": "hinge", "average": True}

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        c, r, big_c, big_r, m, n = policy.values()
        return (1 - 0.05 * ((c - big_c) / m - (r - big_r) / n)).clamp(min=0)


class TestOrpo(Pairs):
    __test__ = True
    spec = ORPO_OBJECTIVE
    options: ClassVar[Mapping[str, Any]] = {"weight": 0.4}

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        p, q = (policy["c"] / policy["m"]).exp(), (policy["r"] / policy["n"]).exp()
        odds = (p / (1 - p)) / (q / (1 - q))
        return -p.log() - 0.4 * (odds / (1 + odds)).log()


class TestSimpo(Pairs):
    __test__ = True
    spec = SIMPO_OBJECTIVE
    options: ClassVar[Mapping[str, Any]] = {"beta": 1.5, "gamma": 0.7, "sft": 0.2}

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        c, r = policy["c"] / policy["m"], policy["r"] / policy["n"]
        return (1 + (0.7 - 1.5 * (c - r)).exp()).log() - 0.2 * c


class TestCpo(Pairs):
    __test__ = True
    spec = SIMPO_OBJECTIVE
    options: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "gamma": 0.0, "average": False, "sft": 1.0}

    def pair(self, policy: Mapping[str, Tensor]) -> Tensor:
        return -logsigmoid(0.1 * (policy["c"] - policy["r"])) - policy["c"] / policy["m"]


class TestKto(ObjectiveSuite):
    """Without mismatched answers."""

    spec = KTO_OBJECTIVE
    roles = ("policy", "reference")
    options: ClassVar[Mapping[str, Any]] = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        batch = answers(seed, (7, 5, 9, 4), learned=learned)
        places = (torch.tensor([0, 3, 2]), torch.tensor([1])) if learned else (EMPTY, EMPTY)
        batch.parts = dict(zip(("desirable", "undesirable"), places, strict=True))
        return batch

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        mine, theirs = (logps_of(roles[name], batch) for name in ("policy", "reference"))
        total = torch.zeros((), dtype=torch.float64)
        for i, ((logp, _), (base, _)) in enumerate(zip(mine, theirs, strict=True)):
            good = i in batch.parts["desirable"].tolist()
            value = 1 / (1 + (-0.3 * (logp - base)).exp())
            total = total + (1.5 * (1 - value) if good else 0.5 * value)
        return total


class TestKtoBaseline(ObjectiveSuite):
    """With mismatched answers, whose mean over a step is part of every loss of it."""

    spec = KTO_OBJECTIVE
    roles = ("policy", "reference")
    options: ClassVar[Mapping[str, Any]] = {"beta": 0.2}

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        batch = answers(seed, (7, 5, 9, 6, 8), learned=learned)
        places = ([0, 2], [1], [3, 4]) if learned else ([], [], [])
        batch.parts = {name: torch.tensor(p, dtype=torch.int64) for name, p in zip(PARTS, places, strict=True)}
        return batch

    def join(self, a: Batch, b: Batch) -> Batch:
        """Mismatched answers come last."""
        first, behind = (join_batches(*(x.sequences(*span) for x in (a, b))) for span in ((0, 3), (3, 5)))
        both = join_batches(first, behind)
        both.parts = {
            "desirable": torch.tensor([0, 2, 3, 5]),
            "undesirable": torch.tensor([1, 4]),
            "mismatched": torch.tensor([6, 7, 8, 9]),
        }
        return both

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        mine, theirs = (logps_of(roles[name], batch) for name in ("policy", "reference"))
        ratios = [logp - base for (logp, _), (base, _) in zip(mine, theirs, strict=True)]
        z = max(float((ratios[3] + ratios[4]).detach()) / 2, 0.0)
        good = sum(1 - torch.sigmoid(0.2 * (ratios[i] - z)) for i in (0, 2))
        return good + 1 - torch.sigmoid(0.2 * (z - ratios[1]))
