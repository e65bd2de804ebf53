"""Figures against values worked out by hand, and numpy's definitions by another way."""

from __future__ import annotations

import json
import math
import statistics

import pytest

from pegboard_bench.samples import Sample, summary


def answered(sent: float, arrivals: list[float], tokens: int, inputs: int = 10) -> Sample:
    return Sample(sent - 0.25, sent, arrivals, inputs, tokens, counted=True)


def test_latencies_of_one_request() -> None:
    # Sent at 1, tokens at 1.5, 1.75 and (two at once) 2.5.
    sample = answered(1.0, [1.5, 1.75, 2.5], 4)
    assert (sample.ttft, sample.e2el) == (0.5, 1.5)
    assert sample.tpot == pytest.approx((1.5 - 0.5) / 3)
    assert sample.itl.tolist() == [0.25, 0.75]


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    sample = answered(1.0, [1.5], 1)
    assert sample.tpot is None
    assert sample.itl.tolist() == []
    assert sample.meets({"tpot": 0.001, "ttft": 500.0})
    assert not sample.meets({"ttft": 499.0})


def test_summary() -> None:
    samples = [answered(0.0, [1.0, 2.0, 3.0], 3), answered(1.0, [2.0 + i for i in range(5)], 5, inputs=20)]
    samples.append(answered(5.0, [5.5], 1))
    samples += [Sample(6.0, 6.0, failure="http 429", detail="busy"), Sample(6.0, 6.0, failure="http 429")]
    told = summary(samples, 10.0, {"ttft": 900.0})
    assert (told["requests"], told["completed"], told["failed"]) == (5, 3, 2)
    assert told["failures"] == {"http 429": {"count": 2, "example": "busy"}}
    assert (told["input_tokens"], told["output_tokens"]) == (40, 9)
    assert told["request_throughput"] == pytest.approx(0.3)
    assert told["output_throughput"] == pytest.approx(0.9)
    assert told["total_throughput"] == pytest.approx(4.9)
    assert told["ttft_ms"] == pytest.approx({"mean": 2500 / 3, "p50": 1000, "p90": 1000, "p99": 1000})
    assert told["tpot_ms"] == pytest.approx({"mean": 1000, "p50": 1000, "p90": 1000, "p99": 1000})
    assert told["e2el_ms"]["p50"] == pytest.approx(3000)
    assert told["lateness_ms"]["mean"] == pytest.approx(150)
    assert told["peak_concurrency"] == 2
    assert told["goodput"] == {"objectives_ms": {"ttft": 900.0}, "requests": 1, "share": 0.2, "rate": 0.1}
    json.dumps(told, allow_nan=False)


def test_percentiles_are_interpolated() -> None:
    values = [0.01 * n**1.5 for n in range(1, 102)]
    told = summary([answered(0.0, [value], 1) for value in values], 1.0)["ttft_ms"]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert [told["p50"], told["p90"], told["p99"]] == pytest.approx([1000 * cuts[p - 1] for p in (50, 90, 99)])


def test_all_failed() -> None:
    told = summary([Sample(0.0, 0.0, failure="no connection")], 2.0, {"e2el": 1.0})
    assert told["ttft_ms"] is told["itl_ms"] is None
    assert told["goodput"]["share"] == 0
    assert not math.isnan(json.loads(json.dumps(told))["request_throughput"])
