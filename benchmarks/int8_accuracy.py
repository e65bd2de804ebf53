"""What int8 weights cost: perplexity of texts with and without a quantizer, and the largest change of a logit; JSON on the last line.

    python benchmarks/int8_accuracy.py MODEL FILE... [--quantizer int8] [--windows 8] [--length 512] [--dtype float32]

The texts are laid end to end and cut into windows of `length` tokens, each read from its start without a cache.
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


def log_probabilities(built: BuiltModel, windows: Tensor) -> tuple[list[float], list[Tensor]]:
    """Return the log-probability of every token but the first of each window [W, L], and the logits of the last ones."""
    found: list[float] = []
    last: list[Tensor] = []
    with torch.inference_mode():
        for ids in windows:
            hidden = built.model(ids, built.context([len(ids)], torch.arange(len(ids))))
            logits = built.model.head(hidden).float()
            found += torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0].tolist()
            last.append(logits[-1])
    return found, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--quantizer", default="int8")
    arguments = parser.parse_args()
    registry = Registry(scan())
    files, windows = read_windows(registry, arguments)
    count = len(windows)
    results = {}
    for name in (None, arguments.quantizer):
        quantizer = None if name is None else registry.create("quantizer", name)
        built = build_model(registry, files, dtype=arguments.dtype, attention="sdpa", quantizer=quantizer)
        results[name] = (*log_probabilities(built, windows), built.weight_bytes)
        del built
    (plain, plain_logits, plain_bytes), (small, small_logits, small_bytes) = results.values()
    mean, mean_small = -sum(plain) / len(plain), -sum(small) / len(small)
    change = max((a - b).abs().max().item() for a, b in zip(plain_logits, small_logits, strict=True))
    same = sum(int(a.argmax() == b.argmax()) for a, b in zip(plain_logits, small_logits, strict=True))
    print(f"{len(plain)} tokens in {count} windows, {arguments.dtype}")
    print(
        f"perplexity {math.exp(mean):.4f} -> {math.exp(mean_small):.4f}: {100 * (math.exp(mean_small - mean) - 1):+.3f} %"
    )
    print(f"largest change of a last logit {change:.3f}; the same first choice in {same} of {count} windows")
    print(f"weights {plain_bytes / 1e6:.1f} MB -> {small_bytes / 1e6:.1f} MB")
    print(json.dumps({"perplexity": math.exp(mean), "quantised": math.exp(mean_small), "logit_change": change}))


if __name__ == "__main__":
    main()
