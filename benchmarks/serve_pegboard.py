"""This project's side of `serve.py`: a model of a shape with random weights, made on its device, behind the engine."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from serve_workloads import Requests
from torch import Tensor

from pegboard.build import choose_platform, find_family, prepare_model
from pegboard.interfaces.engine import Engine, RequestOptions
from pegboard.interfaces.format import LazyTensor, ModelFiles
from pegboard.interfaces.model import ModelFamily
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams


class Random:
    """A tensor of random values, made where it is used. It is written in the place it is for, as one of a file would be."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.shape, self.dtype, self._device = name, shape, dtype, device

    def load(self) -> Tensor:
        """Return norms near 1 and matrices that keep the scale of what they are applied to."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self._device)
        if self.name.endswith("norm.weight"):
            return out.uniform_(0.9, 1.1)
        return out.normal_(0, self.shape[-1] ** -0.5)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some of the rows."""
        return self.load()[start:stop]


class RandomFiles(ModelFiles):
    """The files that a model of this config would have."""

    location = "random weights"
    config: Mapping[str, Any] = {}  # set by each instance
    generation_config: Mapping[str, Any] = {}
    files: Mapping[str, bytes] = {}
    tensors: Mapping[str, LazyTensor] = {}
    portable = False

    def __init__(
        self, family: ModelFamily, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        with torch.device("meta"):
            model = family.build(config)
        self.config = config
        self.tensors = {
            name: Random(name, tuple(parameter.shape), dtype, device) for name, parameter in model.named_parameters()
        }


def start(config: Mapping[str, Any], args: argparse.Namespace, tell: Callable[[str], None]) -> Engine:
    """Return an engine with a model of `config`, telling what was reached on the way."""
    tell("torch is imported")
    registry = Registry.discover()
    name, platform = choose_platform(registry, args.platform)
    device = platform.device(0)
    files = RandomFiles(find_family(registry, config), config, getattr(torch, args.dtype), device)
    tell(f"the device is there: {name}")
    built = prepare_model(registry, files, platform=name, dtype=args.dtype, attention=args.attention, phase="decode")
    tell(f"the model is there but for its weights: attention {built.attention_name}")

    def loaded() -> None:
        platform.synchronize()
        tell("weights are there")

    built.pending.append(loaded)
    options = {
        "use": "paged",
        "max_num_tokens": args.max_num_tokens,
        "max_model_len": args.max_model_len,
        "kv_memory": args.memory if device.type != "cpu" else "256MiB",
        "graphs": not args.no_graphs,
        "rehearse": args.rehearse,
    }
    engine: Engine = registry.create("engine", options)
    engine.load(built, None, registry)
    platform.synchronize()
    # As the commands do: what is there now is no garbage, and is not looked through again.
    gc.freeze()
    tell("engine is there")
    return engine


def generate(engine: Engine, requests: Requests) -> int:
    """Run requests together and return the number of output tokens."""
    for number, (prompt, length) in enumerate(requests):
        params = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True, detokenize=False)
        engine.add_request(str(number), prompt, params, RequestOptions(whole=True))
    count = 0
    while engine.has_unfinished():
        for output in engine.step():
            if output.error:
                raise RuntimeError(f"request {output.request_id} failed: {output.error}")
            count += len(output.token_ids)
    return count
