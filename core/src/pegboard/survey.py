"""What a platform can do here, in lines for people: devices, what they do well, which attention and which kernels compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from pegboard.errors import PegboardError
from pegboard.fresh import offered
from pegboard.interfaces.platform import Phase
from pegboard.types import AttentionSpec

if TYPE_CHECKING:
    import torch

    from pegboard.interfaces.platform import DeviceInfo, Platform
    from pegboard.plugins.load import Registry

PHASES: tuple[Phase, ...] = get_args(Phase)
LAYERS: Mapping[str, AttentionSpec] = {
    "": AttentionSpec(0, 32, 8, 128, 128**-0.5),
    "with a window": AttentionSpec(0, 32, 8, 128, 128**-0.5, window=4096),
    "with a soft cap": AttentionSpec(0, 8, 4, 256, 256**-0.5, softcap=50.0),
}
"""Layers that are asked about; the first stands for what most models have."""


def survey(registry: Registry, platform: Platform) -> list[str]:
    """Return lines about a platform that is usable: one for each device, and what is to be told about them indented behind it."""
    lines: list[str] = []
    details: list[str] = []
    dtype: torch.dtype | None = None
    for info in platform.devices():
        about, usual = _device(platform, info)
        if lines and about != details:  # alike devices are described once, behind the last of them
            lines += details
        details = about
        lines.append(_line(info))
        dtype = dtype or usual
    lines += details
    if dtype is not None:
        lines += [
            f"  attention: {line}" for line in _by_phase({p: _attention(registry, platform, p, dtype) for p in PHASES})
        ]
        if prompts := _prompts(registry, platform, dtype):
            lines.append(f"  attention of prompts with nothing cached: {prompts}")
        lines += [f"  kernels: {line}" for line in _by_phase({p: _kernels(platform, p, dtype) for p in PHASES})]
    return lines


def _line(info: DeviceInfo) -> str:
    memory = f"{info.available_memory / 2**30:.1f} of {info.total_memory / 2**30:.1f} GiB available"
    return f"{info.index} {info.name}, {memory}"


def _device(platform: Platform, info: DeviceInfo) -> tuple[list[str], torch.dtype | None]:
    """Return what a device does well, and its default dtype; None for one that cannot be used."""
    try:
        platform.device(info.index)
        words, dtype = sorted(platform.capabilities(info.index)), platform.default_dtype(info.index)
        notes = platform.notes(info.index)
    except PegboardError as error:
        return [f"  {error.message}"], None
    told = f"{', '.join(words) or 'nothing beyond plain computing'}; dtype auto is {str(dtype).removeprefix('torch.')}"
    return [f"  {line}" for line in (told, *notes)], dtype


def _attention(registry: Registry, platform: Platform, phase: Phase, dtype: torch.dtype) -> str:
    """Return which backend computes usual layers in this phase, and those of `LAYERS` that another one does."""
    usual = _backend(registry, platform, phase, LAYERS[""], dtype)
    told = [usual]
    for name, layer in LAYERS.items():
        other = _backend(registry, platform, phase, layer, dtype)
        if other.split()[0] != usual.split()[0]:
            told.append(f"{name} {other}")
    return "; ".join(told)


def _backend(registry: Registry, platform: Platform, phase: Phase, layer: AttentionSpec, dtype: torch.dtype) -> str:
    installed = [record.name for record in registry.records("attention") if record.status == "ok"]
    preferred, passed = platform.attention_preference(phase, layer), list[str]()
    for name in preferred:
        reason: str | None = "not installed"
        if name in installed:
            try:
                reason = registry.create("attention", name).unsupported(layer, dtype)
            except PegboardError as error:
                reason = error.message
        if reason is None:
            why = "; ".join([platform.attention_reason(phase, layer) if name == preferred[0] else "", *passed]).strip(
                "; "
            )
            return f"{name} ({why})" if why else name
        passed.append(f"{name}: {reason}")
    return f"none ({'; '.join(passed)})"


def _prompts(registry: Registry, platform: Platform, dtype: torch.dtype) -> str:
    """Return what computes fresh prompts of usual layers, and why; empty where the platform knows nothing special for them."""
    layer = LAYERS[""]
    if not platform.prompt_attention(layer, dtype):
        return ""
    chosen, passed = offered(registry, platform, [layer], dtype, 0)
    told = f"{chosen.name} from {chosen.tokens:,} tokens on ({chosen.reason})" if chosen is not None else "as others"
    return "; ".join([told, *passed])


def _kernels(platform: Platform, phase: Phase, dtype: torch.dtype) -> str:
    """Return the ops that are replaced, by the distribution that computes them."""
    owners: dict[str, list[str]] = {}
    for op, function in sorted(platform.kernels(phase, dtype).items()):
        module = getattr(getattr(function, "func", function), "__module__", "") or type(function).__module__
        owners.setdefault(module.partition(".")[0].replace("_", "-"), []).append(op)
    return "; ".join(f"{', '.join(ops)} by {owner}" for owner, ops in owners.items()) or "torch's alone"


def _by_phase(told: Mapping[Phase, str]) -> list[str]:
    """Return one line for the phases that share a text."""
    texts = dict.fromkeys(told.values())
    return [f"{', '.join(phase for phase in told if told[phase] == text)}: {text}" for text in texts]
