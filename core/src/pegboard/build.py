"""From files on disk to a model ready to compute: meta device -> swaps -> attention -> storage -> weights streamed in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pegboard.classifier import SCORE, HeadKind, causal_config, classifier_config, draw_score, is_classifier
from pegboard.divide import Division, add_adapter, divide
from pegboard.errors import ConfigError, ModelError, PluginError
from pegboard.fresh import named, offered
from pegboard.garbage import uncollected
from pegboard.interfaces.platform import Phase, Platform
from pegboard.loading import materialise, stream
from pegboard.nn import CausalLM
from pegboard.nn.layer import bind_kernels
from pegboard.nn.parallel import Region
from pegboard.ops import kernel_table
from pegboard.quantised import stored_quantizer
from pegboard.types import AttentionInputs, ForwardContext
from pegboard.weights import compare_names_shapes
from pegboard.weights.pump import Pump

if TYPE_CHECKING:
    from pegboard.interfaces.adapter import Adapter
    from pegboard.interfaces.attention import AttentionBackend
    from pegboard.interfaces.format import LazyTensor, ModelFiles
    from pegboard.interfaces.model import ModelFamily
    from pegboard.interfaces.quantizer import Quantizer
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import PluginSpec

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(slots=True)
class BuiltModel:
    """A model bound to its device, with what it was built from.

    adapted: names of the modules that an adapter swapped; empty without one. quantizer: the one asked for, or the checkpoint's own.
    division: what of the model is here, where it is split over a tensor-parallel group.
    source: JSON values that build it again elsewhere (see `pegboard.opened.OpenedModel.prepare`); empty where it was not built from a
    location. pending: what is left to do, in order: to give the model storage, to load its weights, and what others add.
    """

    model: CausalLM
    family: ModelFamily
    files: ModelFiles
    platform_name: str
    platform: Platform
    device: torch.device
    dtype: torch.dtype
    attention_name: str
    attention: AttentionBackend
    adapted: Sequence[str] = ()
    quantizer: Quantizer | None = None
    division: Division | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    pending: list[Callable[[], None]] = field(default_factory=list)

    def load(self) -> BuiltModel:
        """Give the model storage and its weights, where `prepare_model` left it empty; return itself."""
        with uncollected():
            while self.pending:
                self.pending.pop(0)()
        return self

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take, loaded or not; memory that several share counts once, through the parameter that owns it."""
        return sum(
            tensor.numel() * (self.dtype if tensor.is_meta and tensor.is_floating_point() else tensor.dtype).itemsize
            for tensor in (*self.model.parameters(), *self.model.buffers())
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json, as a folder of it would have it."""
        score = self.model.score
        return self.files.config if score is None else classifier_config(self.files.config, score.matrix.shape[0])

    def context(self, seq_lens: Sequence[int], positions: Tensor) -> ForwardContext:
        """Return the context of a forward pass over whole sequences without a cache. positions: [T] int64 on the device."""
        plan = self.attention.plan(AttentionInputs(seq_lens, seq_lens), self.device, None)
        groups = 1 + max(spec.group for spec in self.model.attention_specs)
        extents = None
        if self.model.rope_limit is not None:
            lens = torch.as_tensor(seq_lens, dtype=torch.int64)
            extents = lens.repeat_interleave(lens).to(self.device)
        return ForwardContext(positions=positions, plans=[plan] * groups, extents=extents)


def build_model(registry: Registry, files: ModelFiles, **options: Any) -> BuiltModel:
    """Build the model of `files`, weights included; `options` and errors as for `prepare_model`."""
    return prepare_model(registry, files, **options).load()


def prepare_model(
    registry: Registry,
    files: ModelFiles,
    *,
    platform: str = "auto",
    device: int = 0,
    dtype: str = "auto",
    attention: str = "auto",
    adapter: Adapter | None = None,
    quantizer: Quantizer | None = None,
    phase: Phase = "decode",
    head: HeadKind = "auto",
    region: Region | None = None,
    seed: int = 0,
) -> BuiltModel:
    """Build the model of `files` without storage: its shapes, dtype and bindings are final, its weights come with `load()`.

    dtype: a name of torch's ("bfloat16"), or "auto" for what the device computes fastest at full quality.
    phase: what the model is built for; kernels and attention may differ between "train" and "decode".
    head: "scalar" for one score a token in the place of logits, drawn at random where the files hold none; trained whole beside an adapter.
    region: a tensor-parallel group, of which this process has one part of the model; None for all of it.
    seed: of the first values of adapter and score. Raises ModelError listing every tensor that is missing, unexpected or of a wrong shape.
    """
    platform_name, hardware = choose_platform(registry, platform)
    torch_device = hardware.device(device)
    torch_dtype = hardware.default_dtype(device) if dtype == "auto" else parse_dtype(dtype)
    family = find_family(registry, causal_config(files.config))
    with torch.device("meta"), uncollected():
        model = family.build(causal_config(files.config))
    model.adapter_targets = tuple(family.adapter_targets(causal_config(files.config)))
    held_score = files.tensors.get(SCORE)
    if head == "scalar" or (head == "auto" and is_classifier(files.config)):
        model.use_score(held_score.shape[0] if held_score is not None and head == "auto" else 1)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    quantizer = stored_quantizer(registry, files, asked=quantizer)
    if quantizer is not None:
        quantizer.swap(model)
    division = None if region is None else divide(model, family.parallel_plan(causal_config(files.config)), region)
    adapted = adapter.attach(model) if adapter is not None else []
    if division is not None and adapter is not None:
        add_adapter(division, adapter.divided(model))
    attention_name, backend = _bind_attention(registry, attention, hardware, model, torch_dtype, phase, device)
    table = kernel_table(hardware.kernels(phase, torch_dtype, device), owner=f"platform {platform_name!r}")
    bind_kernels(model, table)
    drawn = held_score is None and expected.pop(SCORE, None) is not None
    tensors = _matching(files, family, expected, headless=model.tied or model.score is not None, quantizer=quantizer)

    def give_storage() -> None:
        reserve = partial(hardware.reserve, index=device) if phase != "train" else None
        materialise(model, torch_device, torch_dtype, reserve)

    def load() -> None:
        pump = None
        if torch_device.type != "cpu":
            pump = Pump(torch_device, pinned="pinned" in hardware.capabilities(device))
        with pump or nullcontext():
            stream(model, tensors, division, pump)
        if adapter is not None:
            adapter.initialise(model, seed=seed, dtype=torch_dtype)
        else:
            model.requires_grad_(phase == "train")
        if model.score is not None:
            model.score.requires_grad_(phase == "train")
            if drawn:
                draw_score(model.score.matrix, files.config, seed)

    return BuiltModel(
        model=model,
        family=family,
        files=files,
        platform_name=platform_name,
        platform=hardware,
        device=torch_device,
        dtype=torch_dtype,
        attention_name=attention_name,
        attention=backend,
        adapted=adapted,
        quantizer=quantizer,
        division=division,
        pending=[give_storage, load],
    )


def parse_dtype(name: str) -> torch.dtype:
    """Return torch's dtype. Raises ConfigError naming those that a model can have."""
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}", fix=f"use one of: auto, {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def choose_platform(registry: Registry, name: str = "auto") -> tuple[str, Platform]:
    """Return the platform called `name`, or for "auto" the best one that is present (a present but broken one raises)."""
    chosen = registry.auto("platform").name if name == "auto" else name
    return chosen, registry.create("platform", chosen)


def find_family(registry: Registry, config: Mapping[str, Any]) -> ModelFamily:
    """Return the family that builds the architecture of a config.json. Raises PluginError naming it when no plugin does,
    ModelError when the config does not name it in a list.
    """
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(
            f"the config's architectures is {architectures!r}; a list of names is needed",
            fix="mend the model's config.json",
        )
    model_type = str(config.get("model_type") or "")
    names = [name for architecture in architectures for name in registry.match("model", "architectures", architecture)]
    if not names and not architectures:
        names = registry.match("model", "model_types", model_type)
    if not names:
        wanted = ", ".join(architectures) or model_type or "unnamed"
        hint = model_type.split("_")[0].rstrip("0123456789") or "…"
        raise PluginError(
            f"no installed plugin builds the architecture {wanted}",
            fix=f"install the plugin of that family (pip install pegboard-{hint}, perhaps); `peg plugins list --kind model` shows yours",
        )
    family: ModelFamily = registry.create("model", names[0])
    return family


def open_model(registry: Registry, location: str, revision: str | None = None) -> ModelFiles:
    """Open the model at `location`: a folder, a file, or a hub id, by the format plugin that claims it."""
    from pathlib import Path

    path = Path(location).expanduser()
    if path.is_file():
        names = registry.match("format", "suffixes", path.suffix)
        what = f"files ending in {path.suffix!r}"
    elif path.is_dir():
        specs = {
            record.name: registry.spec("format", record.name)
            for record in registry.records("format")
            if record.status == "ok"
        }
        names = [n for n, s in specs.items() if any((path / marker).is_file() for marker in markers_of(s))]
        markers = sorted({marker for s in specs.values() for marker in markers_of(s)})
        if specs and not names:
            raise ModelError(
                f"the folder {location} holds no model: none of {', '.join(markers)} is in it",
                fix="name a model's folder",
            )
        what = "folders"
    elif _looks_like_path(location):
        raise ModelError(f"there is no file or folder {location}", fix="check the path; a hub id looks like owner/name")
    else:
        names, what = registry.match("format", "ids", "true"), "hub ids"
    if not names:
        raise PluginError(
            f"no installed plugin opens {what}, so {location} cannot be read",
            fix="`peg plugins list --kind format` shows yours; folders and hub ids need pegboard-hub",
        )
    files: ModelFiles = registry.create("format", names[0]).open(
        str(path) if path.exists() else location, revision=revision
    )
    return files


def load_tokenizer(registry: Registry, files: ModelFiles, name: str = "auto") -> Tokenizer:
    """Return the tokenizer of an opened model."""
    chosen = registry.auto("tokenizer").name if name == "auto" else name
    parts = dict(files.files)
    if files.generation_config:
        parts["generation_config.json"] = json.dumps(dict(files.generation_config)).encode()
    tokenizer: Tokenizer = registry.create("tokenizer", chosen).load(parts, files.config)
    return tokenizer


def markers_of(spec: PluginSpec) -> list[str]:
    """Return the files by which a front door's capabilities say that a folder is its own."""
    value = spec.capabilities.get("markers")
    return [str(marker) for marker in value] if isinstance(value, (list, tuple)) else []


def _looks_like_path(location: str) -> bool:
    return location.startswith((".", "/", "~")) or location.count("/") != 1 or "\\" in location


def _bind_attention(
    registry: Registry, name: str, platform: Platform, model: CausalLM, dtype: torch.dtype, phase: Phase, index: int
) -> tuple[str, AttentionBackend]:
    """Give every attention layer the backend called `name` (see `fresh.named`), or for "auto" the platform's first choice that can do them
    all, beside its choice for fresh prompts.
    """
    specs = model.attention_specs
    preferred = platform.attention_preference(phase, specs[0])
    installed = [record.name for record in registry.records("attention") if record.status == "ok"]
    candidates = [n for n in preferred if n in installed] if name == "auto" else [name]
    reasons = [f"{n}: not installed" for n in preferred if n not in installed] if name == "auto" else []
    for candidate in candidates:
        backend = named(registry, candidate, platform, specs[0], dtype, index)
        reason = next((r for r in (backend.unsupported(spec, dtype) for spec in specs) if r), None)
        if reason is None:
            prompts = (
                offered(registry, platform, specs, dtype, index)[0] if name == "auto" and phase != "train" else None
            )
            if prompts is not None and prompts.name != candidate and backend.paged:
                candidate = f"{candidate}+{prompts.name}"
                backend = named(registry, candidate, platform, specs[0], dtype, index)
            for attention in model.attentions:
                attention.backend = backend
            return candidate, backend
        reasons.append(f"{candidate}: {reason}")
    raise PluginError(
        "no attention backend can compute this model's layers: " + ("; ".join(reasons) or "none is installed"),
        fix="`peg plugins list --kind attention` shows yours",
    )


def _matching(
    files: ModelFiles,
    family: ModelFamily,
    expected: Mapping[str, tuple[int, ...]],
    *,
    headless: bool,
    quantizer: Quantizer | None,
) -> dict[str, LazyTensor]:
    """Return the checkpoint's tensors under the model's names, having compared names and shapes.

    headless: the model owns no matrix over the vocabulary, so that the checkpoint's own is passed by.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in (files.tensors if quantizer is None else quantizer.join(files.tensors)).items():
        own = family.rename(name)
        if own is None or (headless and own == "lm_head.weight"):
            continue
        found[own] = tensor
    compare_names_shapes(expected, {name: tuple(t.shape) for name, t in found.items()}, where=files.location)
    return found
