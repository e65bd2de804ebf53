"""What a cache of fewer bits costs: perplexity of texts and the largest change of a logit, for caches of several dtypes; JSON last.

    python benchmarks/kv_accuracy.py MODEL FILE... [--caches bfloat16,int8] [--windows 8] [--length 512] [--dtype float32] [--attention cpu]

The texts are laid end to end and cut into windows of `length` tokens. A window is read in chunks of 64, so that most of what a token looks
at has been through the cache; the first cache is compared with the others.
"""

from __future__ import annotations

import argparse
import json
import math

import torch
from torch import Tensor
from windows import add_arguments, read_windows

from pegboard.build import BuiltModel, build_model
from pegboard.plugins.index import scan
from pegboard.plugins.load import Registry
from pegboard.types import AttentionInputs, ForwardContext, KVCache

PAGE, CHUNK = 16, 64


def read(built: BuiltModel, windows: Tensor, cached: torch.dtype) -> tuple[list[float], list[Tensor], int]:
    """Return the log-probability of every token but the first of each window [W, L], the last logits, and bytes of cache a token."""
    specs, length = built.model.attention_specs, windows.shape[1]
    layout = built.attention.layout(specs[0], len(specs), PAGE, cached)
    pages = -(-length // PAGE)
    cache = KVCache.allocate(layout, pages + 1, built.device)
    found: list[float] = []
    last: list[Tensor] = []
    with torch.inference_mode():
        for ids in windows:
            rows = []
            for begin in range(0, length, CHUNK):
                end = min(begin + CHUNK, length)
                slots = torch.arange(begin, end) + PAGE
                inputs = AttentionInputs([end - begin], [end], [list(range(1, pages + 1))], slots)
                plan = built.attention.plan(inputs, built.device, layout)
                groups = 1 + max(spec.group for spec in specs)
                ctx = ForwardContext(torch.arange(begin, end), [plan] * groups, cache)
                rows.append(built.model.head(built.model(ids[begin:end], ctx)).float())
            logits = torch.cat(rows)
            found += torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0].tolist()
            last.append(logits[-1])
    return found, last, layout.page_bytes // PAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--caches", default="float32,bfloat16,int8")
    parser.add_argument("--attention", default="cpu")
    arguments = parser.parse_args()
    registry = Registry(scan())
    files, windows = read_windows(registry, arguments)
    count = len(windows)
    built = build_model(registry, files, dtype=arguments.dtype, attention=arguments.attention)
    results, first = {}, None
    print(f"{count} windows of {arguments.length} tokens, {arguments.dtype}, attention {arguments.attention}")
    for name in arguments.caches.split(","):
        found, last, size = read(built, windows, getattr(torch, name))
        perplexity = math.exp(-sum(found) / len(found))
        first = first or (perplexity, last)
        change = max((a - b).abs().max().item() for a, b in zip(first[1], last, strict=True))
        off = 100 * (perplexity / first[0] - 1)
        results[name] = {"perplexity": perplexity, "percent": off, "logit_change": change, "bytes_per_token": size}
        print(
            f"{name:9} perplexity {perplexity:.4f} ({off:+.3f} %), largest change of a last logit {change:.3f}, {size} bytes a token"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
