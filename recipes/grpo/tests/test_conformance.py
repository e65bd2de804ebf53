from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from pegboard.types import Batch
from pegboard_grpo.plugin import OBJECTIVE
from pegboard_sdk.conformance import ObjectiveSuite
from pegboard_sdk.toys.roles import VOCABULARY, ToyRole, pack


class Answers(ObjectiveSuite):
    """Answers to prompts of a third of their length, sampled by another policy."""

    spec = OBJECTIVE
    options: ClassVar[Mapping[str, Any]] = {}

    def batch(self, seed: int, *, learned: bool = True) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        lengths = (7, 4, 9)
        ids = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        batch = pack([(tokens, [learned and i > len(tokens) // 3 for i in range(len(tokens))]) for tokens in ids])
        for name in ("old_logps", "reference_logps"):
            values = -3 + torch.randn(sum(lengths), generator=generator, dtype=torch.float64)
            batch.extras[name] = values
        batch.extras["advantage"] = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
        batch.parts = {"answer": torch.arange(len(lengths) if learned else 0)}
        return batch

    def loss_of(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        options = self.options
        clip, value, gain = options.get("clip", 0.2), float(ratio.detach()), float(advantage)
        above = 1 + options.get("clip_above", clip)
        if gain >= 0:
            return -(ratio if value <= above else torch.tensor(above)) * advantage
        if value < 1 - clip:
            return -(1 - clip) * advantage
        return -ratio.clamp(max=options.get("most")) * advantage if "most" in options else -ratio * advantage

    def expected(self, roles: Mapping[str, ToyRole], batch: Batch) -> Tensor:
        """Token by token, from the whole table of probabilities."""
        policy, options = roles["policy"], self.options
        temperature = options.get("temperature", 1.0)
        table = (policy.hidden(batch) @ policy.head.matrix.t() / temperature).softmax(-1).log()
        total, start = torch.zeros((), dtype=torch.float64), 0
        for number, length in enumerate(batch.seq_lens):
            rows = [t for t in range(start, start + length) if batch.targets[t] >= 0]
            logps = [table[t, batch.targets[t]] for t in rows]
            logs = [logp - batch.extras["old_logps"][t] for logp, t in zip(logps, rows, strict=True)]
            if options.get("ratio") == "sequence":
                logs = [sum(logs) / len(logs)] * len(logs)
            for logp, log, t in zip(logps, logs, rows, strict=True):
                value = self.loss_of(log.exp(), batch.extras["advantage"][number])
                if beta := options.get("beta", 0.0):
                    away = batch.extras["reference_logps"][t] - logp
                    value = value + beta * (away.exp() - away - 1)
                shares = {"grpo": len(rows), "dr_grpo": options.get("max_tokens", 128)}
                total = total + value / shares.get(options.get("loss", "dapo"), 1)
            start += length
        return total


Answers.__test__ = False  # type: ignore[attr-defined]


class TestDapo(Answers):
    __test__ = True
    single_pass = True
    options: ClassVar[Mapping[str, Any]] = {"clip": 0.2, "clip_above": 0.28, "most": 1.5}


class TestGrpo(Answers):
    __test__ = True
    single_pass = True
    options: ClassVar[Mapping[str, Any]] = {"loss": "grpo", "beta": 0.04, "temperature": 0.7}


class TestDrGrpo(Answers):
    __test__ = True
    single_pass = True
    options: ClassVar[Mapping[str, Any]] = {"loss": "dr_grpo", "max_tokens": 50}


class TestSequences(Answers):
    __test__ = True
    options: ClassVar[Mapping[str, Any]] = {"loss": "grpo", "ratio": "sequence", "clip": 0.5}
