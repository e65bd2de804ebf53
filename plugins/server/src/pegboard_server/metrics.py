"""Counters and histograms, in Prometheus's text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pegboard.interfaces.engine import EngineStats, RequestOutput

if TYPE_CHECKING:
    from pegboard_server.stream import Track

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets, in seconds."""

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Counter:
    """A number for each set of labels, that only grows."""

    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, amount: float = 1, **labels: str) -> None:
        """Add to the number of `labels`."""
        key = tuple(labels.items())
        self.values[key] = self.values.get(key, 0) + amount


@dataclass(slots=True)
class Histogram:
    """How often values fell under each bound. counts: one a bound, and one for what is above all."""

    bounds: Sequence[float] = LATENCY
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """What the server has seen. Belongs to the event loop: written without locks."""

    def __init__(self) -> None:
        self.first_token, self.inter_token = Histogram(), Histogram()
        self.whole, self.queue = Histogram(), Histogram()
        self.finished, self.aborts, self.responses = Counter(), Counter(), Counter()

    def output(self, track: Track, output: RequestOutput, now: float) -> None:
        """Count an output of the engine that came at `now`."""
        if output.queue_time is not None:
            self.queue.observe(output.queue_time)
        if output.token_ids:
            if track.last is None:
                track.last, track.first = {}, now
                self.first_token.observe(now - track.arrival)
            before = track.last.get(output.index)
            if before is not None:
                # Several tokens of one step came together: they share the time since the step before.
                for _ in output.token_ids:
                    self.inter_token.observe((now - before) / len(output.token_ids))
            track.last[output.index] = now
        if output.finish_reason is not None:
            self.finished.add(reason=output.finish_reason)
            self.whole.observe(now - track.arrival)
            if output.finish_reason not in ("stop", "length"):
                self.aborts.add(cause={"timeout": "deadline"}.get(output.finish_reason, output.finish_reason))

    def aborted(self, cause: str, count: int) -> None:
        """Count requests that the server ended itself. cause: "disconnect", "shutdown" or "failure"."""
        self.aborts.add(count, cause=cause)

    def text(self, stats: EngineStats) -> str:
        """Return everything in Prometheus's text format."""
        return "".join(f"{line}\n" for line in self._lines(stats))

    def _lines(self, stats: EngineStats) -> Iterator[str]:
        for name, help_text, value in (
            ("requests_running", "Requests that the engine computes.", stats.running),
            ("requests_waiting", "Requests that wait for the engine.", stats.waiting),
            ("kv_pages", "Pages of the key-value cache.", stats.pages),
            ("kv_pages_held", "Pages that requests or leases hold.", stats.held_pages),
            ("kv_pages_cached", "Free pages whose content may be found again.", stats.cached_pages),
            ("kv_usage_ratio", "Share of the pages that is held.", stats.held_pages / max(stats.pages, 1)),
            ("prefix_hit_ratio", "Share of prompt tokens found in the cache, since the start.", _hit_rate(stats)),
        ):
            yield from _head(name, help_text, "gauge")
            yield f"pegboard_{name} {value}"
        for name, help_text, value in (
            ("engine_steps_total", "Steps that the engine has computed.", stats.steps),
            ("prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens),
            ("output_tokens_total", "Tokens generated.", stats.output_tokens),
            ("prefix_queries_total", "Prompt tokens that were looked up in the cache.", stats.prefix_queries),
            ("prefix_hits_total", "Prompt tokens that were found in the cache.", stats.prefix_hits),
            ("preemptions_total", "Requests that had to give their pages back and begin again.", stats.preemptions),
        ):
            yield from _head(name, help_text, "counter")
            yield f"pegboard_{name} {value}"
        if stats.expert_tokens:
            yield from _experts(stats.expert_tokens)
        for name, help_text, counter in (
            ("requests_finished_total", "Answers by how they ended.", self.finished),
            ("requests_aborted_total", "Requests that did not come to their own end, by cause.", self.aborts),
            ("http_responses_total", "Responses by route and status.", self.responses),
        ):
            yield from _head(name, help_text, "counter")
            yield from (f"pegboard_{name}{_labels(dict(key))} {value}" for key, value in sorted(counter.values.items()))
        for name, help_text, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token.", self.first_token),
            ("inter_token_latency_seconds", "Between two tokens of an answer.", self.inter_token),
            ("request_seconds", "From arrival to the end of an answer.", self.whole),
            ("queue_seconds", "From arrival to the first step.", self.queue),
        ):
            yield from _head(name, help_text, "histogram")
            yield from _histogram(f"pegboard_{name}", histogram)


def _experts(layers: Sequence[Sequence[int]]) -> Iterator[str]:
    """Yield what each expert of a mixture did in all layers, and how uneven each layer is."""
    yield from _head("expert_tokens_total", "Tokens that used an expert, in all layers together.", "counter")
    for expert, counts in enumerate(zip(*layers, strict=True)):
        yield f'pegboard_expert_tokens_total{{expert="{expert}"}} {sum(counts)}'
    yield from _head(
        "expert_load_max_ratio", "Tokens of a layer's busiest expert / the mean, since the start.", "gauge"
    )
    for layer, row in enumerate(layers):
        yield f'pegboard_expert_load_max_ratio{{layer="{layer}"}} {max(row) * len(row) / max(sum(row), 1)}'


def _head(name: str, help_text: str, kind: str) -> Iterator[str]:
    yield f"# HELP pegboard_{name} {help_text}"
    yield f"# TYPE pegboard_{name} {kind}"


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    running = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        running += count
        yield f'{name}_bucket{{le="{bound}"}} {running}'
    yield f"{name}_sum {histogram.total}"
    yield f"{name}_count {running}"


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{key}="{escaped(value)}"' for key, value in labels.items()) + "}"


def _hit_rate(stats: EngineStats) -> float:
    return stats.prefix_hits / max(stats.prefix_queries, 1)
