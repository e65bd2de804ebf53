"""Checkpoints whose weights are quantised: which plugin reads one, and writing one, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.errors import ConfigError, ModelError, PluginError
from pegboard.nn import Linear
from pegboard.weights import write_model

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.format import LazyTensor, ModelFiles
    from pegboard.interfaces.quantizer import Quantizer
    from pegboard.plugins.load import Registry

SETTINGS = "quantization_config"
"""The key of config.json that says how the weights are quantised."""


def stored_quantizer(registry: Registry, files: ModelFiles, *, asked: Quantizer | None = None) -> Quantizer | None:
    """Return the quantizer that a checkpoint's weights were written with; the one asked for where they are in full precision.

    Raises PluginError when no plugin reads them, ConfigError when another quantizer was asked for.
    """
    settings = files.config.get(SETTINGS)
    if settings is None:
        return asked
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str):
        raise ModelError(
            f"the {SETTINGS} in the config of {files.location} names no quant_method",
            fix="mend the model's config.json, or name the model in full precision",
        )
    names = registry.match("quantizer", "quant_methods", method)
    if not names:
        raise PluginError(
            f"the weights of {files.location} are quantised as {method!r}, which no installed plugin reads",
            fix="name the model in full precision; `peg plugins list --kind quantizer` shows yours",
        )
    kind = registry.load("quantizer", names[0])
    if asked is not None and not isinstance(asked, kind):
        raise ConfigError(
            f"the weights of {files.location} are quantised already, as {method!r}",
            fix="drop the quantizer, or name the model in full precision",
        )
    found: Quantizer = kind.stored(settings, files.tensors)
    return found


def full_precision(registry: Registry, files: ModelFiles) -> tuple[dict[str, Any], Mapping[str, LazyTensor]]:
    """Return a model's config and tensors as those of one in full precision, whatever form its weights are stored in."""
    quantizer = stored_quantizer(registry, files)
    config = {key: value for key, value in files.config.items() if key != SETTINGS}
    return config, files.tensors if quantizer is None else quantizer.join(files.tensors)


def write_quantised(
    built: BuiltModel, quantizer: Quantizer, folder: Path, files: Mapping[str, bytes], dtype: torch.dtype
) -> None:
    """Write a loaded full-precision model with the quantizer's weights into a new Hugging Face folder, which appears whole or not at all.

    files: relative name -> content of what travels with it. dtype: of the parameters that are not quantised.
    """
    chosen = set(quantizer.chosen(built.model))
    linear = [name for name, module in built.model.named_modules() if isinstance(module, Linear)]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in built.model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            weight = parameter.detach()
            if leaf == "weight" and owner in chosen:
                yield from ((key, tensor.cpu()) for key, tensor in quantizer.store(owner, weight, dtype).items())
            else:
                yield name, weight.to("cpu", dtype)

    kept = [name for name in linear if name not in chosen]
    settings = dict(quantizer.settings([*kept, "lm_head"], dtype))
    name = str(dtype).removeprefix("torch.")
    config = {**built.config, "dtype": name, "torch_dtype": name, SETTINGS: settings}
    write_model(folder, config, tensors(), files, generation_config=built.files.generation_config or None)
