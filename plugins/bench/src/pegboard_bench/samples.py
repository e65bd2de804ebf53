"""What became of requests, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)
OBJECTIVES = ("ttft", "tpot", "e2el")


@dataclass(slots=True)
class Sample:
    """One request as its client saw it. Times are seconds of one monotonic clock.

    planned: when it was to be sent. sent: when it was. arrivals: when each piece of the answer came that held a token or more; pieces
    that only frame the answer (a role, the usage) are left out. input_tokens, output_tokens: as the server counted them, or
    as is known from the prompt and the number of pieces; `counted` tells which for the output. failure: what kind, None for none.
    detail: of the failure, for people.
    """

    planned: float
    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    counted: bool = False
    failure: str | None = None
    detail: str = ""

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token."""
        return self.arrivals[0] - self.sent

    @property
    def e2el(self) -> float:
        """Seconds from sending to the last token."""
        return self.arrivals[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """Mean seconds of an output token after the first one; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.e2el - self.ttft) / (self.output_tokens - 1)

    @property
    def itl(self) -> np.ndarray:
        """Seconds between one piece and the next; a piece may hold several tokens."""
        return np.diff(np.array(self.arrivals))

    def meets(self, objectives: Mapping[str, float]) -> bool:
        """Whether it succeeded and kept every objective, in milliseconds; an answer of one token keeps every tpot."""
        if self.failure is not None:
            return False
        return all((getattr(self, name) or 0.0) * 1000 <= limit for name, limit in objectives.items())


def summary(samples: Sequence[Sample], seconds: float, objectives: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return the figures of a run, ready for JSON; times in milliseconds, rates a second.

    seconds: from the first request's planned time to the last answer's end. A distribution without values is None.
    """
    good = [sample for sample in samples if sample.failure is None]
    failures = Counter(sample.failure for sample in samples if sample.failure is not None)
    inputs, outputs = sum(s.input_tokens for s in good), sum(s.output_tokens for s in good)
    told: dict[str, Any] = {
        "requests": len(samples),
        "completed": len(good),
        "failed": len(samples) - len(good),
        "failures": {kind: {"count": count, "example": _example(samples, kind)} for kind, count in failures.items()},
        "duration_s": seconds,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "output_tokens_counted_by": "server" if all(s.counted for s in good) else "pieces",
        "request_throughput": len(good) / seconds,
        "output_throughput": outputs / seconds,
        "total_throughput": (inputs + outputs) / seconds,
        "ttft_ms": _distribution([s.ttft for s in good]),
        "tpot_ms": _distribution([s.tpot for s in good if s.tpot is not None]),
        "itl_ms": _distribution(np.concatenate([s.itl for s in good]) if good else []),
        "e2el_ms": _distribution([s.e2el for s in good]),
        "peak_concurrency": _peak(samples),
        "lateness_ms": _distribution([s.sent - s.planned for s in samples]),
    }
    if objectives:
        kept = sum(sample.meets(objectives) for sample in samples)
        told["goodput"] = {
            "objectives_ms": dict(objectives),
            "requests": kept,
            "share": kept / len(samples) if samples else 0.0,
            "rate": kept / seconds,
        }
    return told


def _distribution(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    scaled = np.asarray(values, dtype=np.float64) * 1000
    told = {"mean": float(scaled.mean())}
    return told | {
        f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(scaled, PERCENTILES), strict=True)
    }


def _example(samples: Sequence[Sample], kind: str) -> str:
    return next(sample.detail for sample in samples if sample.failure == kind)


def _peak(samples: Sequence[Sample]) -> int:
    """Return how many answers were coming at once, at most. One that failed without a piece counts for no time."""
    events = [(s.sent, 1) for s in samples if s.arrivals] + [(s.arrivals[-1], -1) for s in samples if s.arrivals]
    running = peak = 0
    for _, change in sorted(events):
        running += change
        peak = max(peak, running)
    return peak
