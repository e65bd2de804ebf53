"""The adapters `lora` and `dora`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError, ModelError
from pegboard.interfaces.adapter import Adapter, AdapterFiles
from pegboard.nn.parallel import Split
from pegboard_lora.files import (
    CONFIG_FILE,
    PREFIX,
    SCORE,
    check_tensors,
    open_adapter,
    peft_config,
    peft_names,
    read_settings,
)
from pegboard_lora.layers import DoraLinear, LoraLinear
from pegboard_lora.options import LoraOptions
from pegboard_lora.slots import LoraSlots, slots_bytes
from pegboard_lora.targets import adaptable, device_of, named, put, select


class LoraAdapter(Adapter):
    """Low-rank additions to linear layers (arXiv:2106.09685)."""

    layer: ClassVar[type[LoraLinear]] = LoraLinear

    def __init__(self, options: LoraOptions | None = None) -> None:
        self.options = options or LoraOptions()
        self._names: list[str] = []

    @classmethod
    def open(cls, folder: Path) -> AdapterFiles:
        """Read a folder of PEFT's or ours, of LoRA or DoRA."""
        base = read_settings(folder).get("base_model_name_or_path") or ""
        if not isinstance(base, str):
            raise ModelError(
                f"{folder / CONFIG_FILE}: base_model_name_or_path is {base!r}",
                fix="write the id or folder of its base model there",
            )
        adapter, tensors = open_adapter(folder)
        score = tensors.pop(f"{PREFIX}{SCORE}", None)
        return AdapterFiles(adapter, base, tensors, {} if score is None else {SCORE: score})

    def attach(self, model: nn.Module) -> list[str]:
        """Swap the targeted linear layers for adapted ones, freeze the rest, and return the adapted modules' names."""
        modules, targets = adaptable(model), named(self.options.targets, model)
        self.options = self.options.model_copy(update={"targets": targets})
        names = select(list(modules), targets)
        if not self.layer.additive:
            _require_weights({name: modules[name] for name in names}, "DoRA")
        _require_linear({name: modules[name] for name in names}, self.layer.additive, self.options.dropout)
        model.requires_grad_(False)
        dtype = getattr(torch, self.options.dtype)
        for name in names:
            adapted = self.layer(
                modules[name],
                self.options.rank_of(name),
                self.options.scaling_of(name),
                dropout=self.options.dropout,
                dtype=dtype,
            )
            put(model, name, adapted)
        self._names = names
        return names

    def initialise(self, model: nn.Module, *, seed: int, dtype: torch.dtype) -> None:
        """Give the parameters their first values. `dtype` is the model's; the adapter's own is its option."""
        generator = torch.Generator().manual_seed(seed)
        for _, module in sorted(_adapted(model).items()):
            module.reset(device=device_of(module.base), init=self.options.init, generator=generator)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the parameters under PEFT's names, sharing memory with the model's."""
        return {name: parameter.detach() for name, parameter in _parameters(model).items()}

    def parameter_names(self, model: nn.Module) -> dict[str, str]:
        """Return the model's name of each parameter, by PEFT's."""
        return {
            name: f"{module_name}.{attribute}"
            for module_name, module in _adapted(model).items()
            for name, attribute in peft_names(module_name, magnitude=isinstance(module, DoraLinear)).items()
        }

    def divided(self, model: nn.Module) -> dict[str, Split | None]:
        """B follows a layer that is split by its outputs, A one that is split by its inputs; the gradient of the other is a partial sum."""
        found: dict[str, Split | None] = {}
        for name, module in _adapted(model).items():
            split: Split | None = getattr(module.base, "divided", None)
            if split is None:
                continue
            columns = split.dim == 0
            found |= {f"{name}.lora_a": None if columns else split, f"{name}.lora_b": split if columns else None}
            if isinstance(module, DoraLinear):
                if not columns:
                    raise ConfigError(
                        f"DoRA needs whole rows of weights, but {name} is split by its inputs",
                        fix="leave it out of adapter.targets, use adapter.use=lora, or set mesh.tensor=1",
                    )
                found[f"{name}.magnitude"] = split
        return found

    @torch.no_grad()
    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Copy parameters named as in `tensors`; parameters without storage get it beside their base weight."""
        check_tensors({name: tuple(parameter.shape) for name, parameter in _parameters(model).items()}, tensors)
        for module_name, module in _adapted(model).items():
            for name, attribute in peft_names(module_name, magnitude=isinstance(module, DoraLinear)).items():
                parameter = getattr(module, attribute)
                if parameter.is_meta:
                    parameter = nn.Parameter(torch.empty_like(parameter, device=device_of(module.base)))
                    setattr(module, attribute, parameter)
                parameter.copy_(tensors[name])

    def config(self, base: str) -> dict[str, Any]:
        """Return the content of PEFT's adapter_config.json."""
        return peft_config(self.options, base, self._names, dora=self.layer is DoraLinear)

    def merge(self, model: nn.Module) -> None:
        """Write the adapted weights into the base's memory and put the plain modules back."""
        adapted = _adapted(model)
        for module in adapted.values():
            plain = getattr(module.base, "plain", None)
            if callable(plain) and not _has_weights(module.base):  # quantised: the sum needs full precision
                module.base = plain()
        _require_weights({name: module.base for name, module in adapted.items()}, "merging")
        for name, module in adapted.items():
            put(model, name, module.merge())

    @classmethod
    def serving(cls, model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype) -> LoraSlots:
        """Return slots for plain LoRA; an adapter of DoRA is refused when it is loaded."""
        return LoraSlots(model, num_slots=num_slots, max_rank=max_rank, dtype=dtype)

    @classmethod
    def serving_bytes(cls, model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype) -> int:
        """Return the bytes of slots that are all full, of adapters of the highest rank on every layer."""
        return slots_bytes(model, num_slots=num_slots, max_rank=max_rank, dtype=dtype)

    @contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """Switch the adapted modules off, and back to what each was at the end."""
        modules = list(_adapted(model).values())
        before = [module.enabled for module in modules]
        for module in modules:
            module.enabled = False
        try:
            yield
        finally:
            for module, enabled in zip(modules, before, strict=True):
                module.enabled = enabled


class DoraAdapter(LoraAdapter):
    """LoRA on the direction of each weight row, beside a trained magnitude (arXiv:2402.09353)."""

    layer = DoraLinear


def _adapted(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: getattr(module, attribute)
        for module_name, module in _adapted(model).items()
        for name, attribute in peft_names(module_name, magnitude=isinstance(module, DoraLinear)).items()
    }


def _require_linear(modules: Mapping[str, nn.Module], additive: bool, dropout: float) -> None:
    """Raise ConfigError where a base computes with the whole weight, update included, and the adapter is more than such an update."""
    rounded = [name for name, module in modules.items() if hasattr(module, "with_update")]
    if rounded and (dropout > 0 or not additive):
        raise ConfigError(
            f"{rounded[0]} rounds its weight while it learns, with which {'dropout' if additive else 'DoRA'} cannot be combined",
            fix="set adapter.dropout=0" if additive else "use adapter.use=lora",
        )


def _has_weights(module: nn.Module) -> bool:
    """Whether a linear layer holds its weights in full precision."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.is_floating_point()
        and list(weight.shape) == [module.out_features, module.in_features]
    )


def _require_weights(modules: Mapping[str, nn.Module], what: str) -> None:
    for name, module in modules.items():
        if not _has_weights(module):
            raise ConfigError(
                f"{what} needs full-precision weights, but {name} is a {type(module).__name__}",
                fix="drop the quantizer, or use `adapter.use=lora` without merging",
            )
