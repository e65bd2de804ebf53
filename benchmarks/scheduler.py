"""What the engine itself costs a step: scheduling, inputs and outputs of many running requests over a model that computes nothing.

python benchmarks/scheduler.py [--requests 1000] [--contexts 1024 32768] [--steps 320] [--json]

Times are processor time of the one thread that steps, so that others on the machine count little. Lengths differ by up to a page,
so that every step fills some pages. "step" is what `PagedEngine.step` takes; "read" looks at every output besides, each of which
becomes an object then; "whole" is a step of requests that are told at their end alone, as `LLM.generate` asks for them.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

import numpy as np

from pegboard.interfaces.engine import RequestOptions
from pegboard.interfaces.executor import Executor
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec
from pegboard.types import SamplingParams, StepPlan, StepResult
from pegboard_engine import EngineOptions, PagedEngine
from pegboard_sdk.toys.model import TINY, random_model


class NullExecutor(Executor):
    """Every token is 7, at once."""

    depth = 1

    def load(self, built, cache, registry):
        self._plan: StepPlan | None = None

    def submit(self, plan):
        self._plan = plan
        return plan.step

    def collect(self, handle):
        count = len(self._plan.logits_indices)
        return StepResult(handle, np.full(count, 7), {"valid": np.ones(count, dtype=bool)})

    def update_weights(self, version):
        pass

    def close(self):
        pass


def measure(requests: int, context: int, steps: int, sampled: bool, kind: str) -> dict[str, float]:
    """Return milliseconds of decode steps of `requests` that have about `context` tokens each. kind: step, read or whole."""
    built = random_model(config={**TINY, "max_position_embeddings": 65536}, phase="decode")
    options = EngineOptions(
        max_num_seqs=requests, max_num_tokens=1 << 20, executor="null", kv_memory="64GiB", max_model_len=36864
    )
    engine = PagedEngine(options)
    null = PluginSpec(kind="executor", target=f"{__name__}:NullExecutor")
    engine.load(built, None, Registry.of({("executor", "null"): null}))
    rng = np.random.default_rng(0)
    params = SamplingParams(max_tokens=4096, temperature=0.8 if sampled else 0, top_p=0.9 if sampled else 1, seed=1)
    for number in range(requests):
        prompt = rng.integers(0, 200, context + number % options.page_size)
        engine.add_request(str(number), prompt, params, RequestOptions(whole=kind == "whole"))
    while engine.stats().running < requests or engine.stats().waiting:
        engine.step()
    # As the commands do once everything is loaded.
    gc.collect()
    gc.freeze()
    times = []
    for _ in range(20 + steps):
        began = time.thread_time()
        outputs = engine.step()
        count = sum(len(output.token_ids) for output in outputs) if kind == "read" else len(outputs)
        times.append(1e3 * (time.thread_time() - began))
        assert count == (0 if kind == "whole" else requests)
    engine.close()
    gc.unfreeze()
    kept = sorted(times[20:])
    return {"median_ms": statistics.median(kept), "mean_ms": statistics.fmean(kept), "p99_ms": kept[int(0.99 * steps)]}


def main() -> None:
    """Print a line for each context, kind of step and way of sampling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 32768])
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        {"requests": args.requests, "context": context, "sampling": "top_p" if sampled else "greedy", "kind": kind}
        | measure(args.requests, context, args.steps, sampled, kind)
        for sampled in (False, True)
        for kind in ("step", "read", "whole")
        for context in args.contexts
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['requests']} requests, {row['context']:>6} tokens each, {row['sampling']:6} {row['kind']:5}: "
            f"median {row['median_ms']:.3f} ms, mean {row['mean_ms']:.3f}, 99 % {row['p99_ms']:.3f}"
        )


if __name__ == "__main__":
    main()
