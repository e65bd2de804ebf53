"""Where a decode step's time goes: the host's by part of the step, the device's by kernel."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from serve_workloads import Requests

from pegboard.interfaces.engine import Engine, RequestOptions
from pegboard.types import SamplingParams

_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "hipStreamSynchronize")


class Timers:
    """Seconds by name, of methods that were wrapped; a call inside another one counts for both."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Time every call of owner.name."""
        before = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return before(*args, **kwargs)
            finally:
                self.seconds[label] += time.perf_counter() - began

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, before))

    def close(self) -> None:
        """Leave everything as it was."""
        for undo in self._undo:
            undo()


def profile(engine: Any, say: Callable[[str], None], counts: Sequence[int], *, small: bool = False) -> None:
    """Print decode steps of so many sequences of about a thousand tokens."""
    for count in counts:
        length = 24 if small else (128 if count == 1 else 1024)
        steps = 8 if small else 64
        decode(engine, say, [([11 + (7 * row) % 5000] * length, 4 * steps) for row in range(count)], steps)


def decode(engine: Any, say: Callable[[str], None], requests: Requests, steps: int) -> None:
    """Print what `steps` decode steps of these requests took, first timed on the host alone, then under torch's profiler."""
    began = time.perf_counter()
    add(engine, requests)
    while engine.stats().output_tokens < len(requests) * 2 + getattr(engine, "_told", 0):
        engine.step()
    say(f"{len(requests)} sequences: prompts and first steps took {time.perf_counter() - began:.3f} s")
    for _ in range(steps):
        engine.step()
    walls = []
    for _ in range(steps):
        began = time.perf_counter()
        engine.step()
        walls.append(time.perf_counter() - began)
    walls.sort()
    say(f"  step: median {1e3 * walls[steps // 2]:.3f} ms, 90 % {1e3 * walls[int(0.9 * steps)]:.3f} ms")
    timers = Timers()
    wrap(engine, timers)
    began = time.perf_counter()
    for _ in range(steps // 2):
        engine.step()
    whole = time.perf_counter() - began
    timers.close()
    parts = ", ".join(f"{name} {2e3 * value / steps:.3f}" for name, value in timers.seconds.items())
    say(f"  host, ms a step: {2e3 * whole / steps:.3f} in all; {parts}")
    on_device(engine, say, steps // 4)
    for number in range(len(requests)):
        engine.abort(str(number))
    while engine.has_unfinished():
        engine.step()
    engine._told = engine.stats().output_tokens


def wrap(engine: Any, timers: Timers) -> None:
    """Time the parts of a step."""
    executor = engine._executor
    runner = executor._runner
    timers.wrap(engine._scheduler, "schedule", "schedule")
    timers.wrap(engine, "_submit", "submit")
    timers.wrap(runner, "start", "runner.start")
    timers.wrap(runner._sampler, "sample", "sample")
    timers.wrap(executor, "collect", "wait")
    timers.wrap(engine._flights._reader, "read", "read")
    if runner._graphs is not None:
        timers.wrap(runner._graphs, "run", "graphs.run")


def on_device(engine: Any, say: Callable[[str], None], steps: int) -> None:
    """Print the kernels of `steps` steps, and what the host called to start them and to wait."""
    device = engine._executor._runner._built.device
    if device.type == "cpu":
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            engine.step()
        torch.accelerator.synchronize()
    kernels: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    times: defaultdict[str, float] = defaultdict(float)
    host: Counter[str] = Counter()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.name] += 1
            times[event.name] += event.device_time
        elif event.name.startswith(("cuda", "hip", "cu")):
            host[event.name] += 1
            calls[event.name] += event.cpu_time
    whole = sum(times.values()) / steps
    say(f"  device, a step: {sum(kernels.values()) / steps:.0f} kernels and copies, {whole / 1e3:.3f} ms")
    for name in sorted(times, key=times.__getitem__, reverse=True)[:16]:
        say(f"    {times[name] / steps:9.1f} us {kernels[name] / steps:7.1f} x {name[:100]}")
    waits = {name: count / steps for name, count in host.items() if name in _WAITS}
    say(f"  host waits a step: {waits or 'none'}")
    for name, _ in host.most_common(8):
        say(f"    {host[name] / steps:7.1f} x {name}, {calls[name] / steps:.1f} us in all")


def add(engine: Engine, requests: Requests) -> None:
    """Queue requests."""
    for number, (prompt, length) in enumerate(requests):
        params = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True, detokenize=False)
        engine.add_request(str(number), prompt, params, RequestOptions(whole=True))
