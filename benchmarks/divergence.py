"""How often rounding changes what a model says: greedy tokens of requests that are computed in other shapes, against the same ones alone.

    python benchmarks/divergence.py MODEL [FILE...] [--prompts 32] [--tokens 32] [--dtypes bfloat16,float32] [--threads N]

Prompts of 32 to 256 tokens are cut from the texts, by default this repository's pages. Alone, a request is read in one step and goes on a
token a step. Batched, all come at once; chunked, a prompt is read 24 tokens a step; after a prefix hit, all of a prompt but its last
tokens lies in the cache, computed by a request before. In exact arithmetic all give the same tokens. Told are the requests
whose tokens differ, where the first difference is, and how far apart the two likeliest tokens were there, in nats, for the request alone.
JSON last.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pegboard.build import choose_platform
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import LLM
from pegboard_engine.llm import Completion

ROOT = Path(__file__).resolve().parents[1]
SHORTEST, LONGEST, CHUNK = 32, 256, 24
UNKNOWN = 8
"""Tokens at the end of a prompt that a prefix hit leaves to compute, at least."""

Prompts = list[list[int]]
Run = Callable[[LLM, Prompts, SamplingParams], list[Completion]]


@dataclass(frozen=True)
class Divergence:
    """differ, requests: counts. mean_position: tokens before the first difference, in the mean over those that differ.

    mean_gap, greatest_gap: log-probability of the likeliest token there over that of the second, as the request alone had them.
    """

    differ: int
    requests: int
    mean_position: float | None
    mean_gap: float | None
    greatest_gap: float | None

    @classmethod
    def between(cls, alone: list[Completion], other: list[Completion]) -> Divergence:
        """Compare answers, request by request."""
        positions, gaps = [], []
        for one, two in zip(alone, other, strict=True):
            pairs = enumerate(zip(one.token_ids, two.token_ids, strict=True))
            place = next((place for place, (a, b) in pairs if a != b), None)
            if place is None:
                continue
            assert one.logprobs is not None
            (_, first), (_, second) = one.logprobs[place].top
            positions.append(place)
            gaps.append(first - second)
        count = len(positions)
        if not count:
            return cls(0, len(alone), None, None, None)
        return cls(count, len(alone), sum(positions) / count, sum(gaps) / count, max(gaps))

    def line(self) -> str:
        """Return it as a line for people."""
        rate = f"{self.differ:4} of {self.requests} differ ({100 * self.differ / self.requests:.0f} %)"
        if self.mean_position is None:
            return rate
        return f"{rate}, first after {self.mean_position:.1f} tokens, gap {self.mean_gap:.4f} ({self.greatest_gap:.4f} at most)"


def together(llm: LLM, prompts: Prompts, params: SamplingParams) -> list[Completion]:
    """Answer all at once."""
    return [generation.outputs[0] for generation in llm.generate(prompts, params)]


def one_by_one(llm: LLM, prompts: Prompts, params: SamplingParams) -> list[Completion]:
    """Answer each when the one before is complete."""
    return [together(llm, [prompt], params)[0] for prompt in prompts]


def after_hits(llm: LLM, prompts: Prompts, params: SamplingParams) -> list[Completion]:
    """Answer each when another request has left most of its prompt in the cache. Raises RuntimeError where it is not found there."""
    answers = []
    for prompt in prompts:
        llm.generate([prompt[:-UNKNOWN]], SamplingParams(max_tokens=1, temperature=0))
        (generation,) = llm.generate([prompt], params)
        if not 0 < generation.num_cached_tokens <= len(prompt) - UNKNOWN:
            raise RuntimeError(f"{generation.num_cached_tokens} of {len(prompt)} tokens were found in the cache")
        answers.append(generation.outputs[0])
    return answers


WHOLE = {"prefix_caching": False, "max_num_tokens": 16384}
WAYS: dict[str, tuple[Run, dict[str, Any]]] = {
    "alone": (one_by_one, WHOLE),
    "alone, again": (one_by_one, WHOLE),
    "batched": (together, WHOLE),
    "chunked": (one_by_one, {**WHOLE, "max_num_tokens": CHUNK, "max_num_seqs": 1}),
    "prefix hit": (after_hits, {**WHOLE, "prefix_caching": True}),
}


def cut(llm: LLM, files: list[Path], count: int) -> Prompts:
    """Return prompts from the texts. Exits when they do not suffice."""
    source = random.Random(0)
    ids = llm.tokenizer.encode("\n".join(path.read_text(encoding="utf-8") for path in files), special=False)
    prompts: Prompts = []
    while len(prompts) < count:
        length = source.randint(SHORTEST, LONGEST)
        if len(ids) < length:
            raise SystemExit(
                f"the files suffice for {len(prompts)} prompts: name more, or ask for fewer with --prompts"
            )
        prompts.append(ids[:length])
        ids = ids[length:]
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    files = arguments.files or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    registry = Registry.discover()
    _, platform = choose_platform(registry, "auto")
    platform.configure(threads=arguments.threads)
    params = SamplingParams(max_tokens=arguments.tokens, temperature=0, ignore_eos=True, logprobs=2)
    told: dict[str, dict[str, Any]] = {}
    for dtype in arguments.dtypes.split(","):
        alone: list[Completion] = []
        for name, (run, options) in WAYS.items():
            with LLM(arguments.model, registry=registry, dtype=dtype, max_model_len=1024, **options) as llm:
                answers = run(llm, cut(llm, files, arguments.prompts), params)
            alone = alone or answers
            found = Divergence.between(alone, answers)
            told.setdefault(dtype, {})[name] = asdict(found)
            print(f"{dtype:9} {name:13} {found.line()}", flush=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
