"""PEFT's files: names of tensors, adapter_config.json, and reading a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pegboard.errors import ModelError
from pegboard_lora.options import LoraOptions
from pegboard_lora.targets import is_plain

if TYPE_CHECKING:
    from torch import Tensor

    from pegboard_lora.adapter import LoraAdapter

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"

PREFIX = "base_model.model."
SCORE = "score.weight"
# Keys that say nothing about the computation, or only matter beside another key that is checked.
_NEUTRAL = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config inference_mode layers_pattern "
    "loftq_config lora_ga_config megatron_core peft_version qalora_group_size revision runtime_config task_type".split()
)
_READ = frozenset(
    "alpha_pattern bias init_lora_weights lora_alpha lora_dropout peft_type r rank_pattern target_modules use_dora "
    "use_rslora".split()
)
# Initialisations that leave the base weights as they are.
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


def without_score(modules: Any) -> Any:
    """Return `modules_to_save` without the head of a classifier, which is no adapter's business and read beside it."""
    return [name for name in modules if name != "score"] if isinstance(modules, list) else modules


def peft_names(module: str, *, magnitude: bool) -> dict[str, str]:
    """Return PEFT's tensor name -> our parameter name, for one adapted module."""
    stem = f"{PREFIX}{module}."
    names = {f"{stem}lora_A.weight": "lora_a", f"{stem}lora_B.weight": "lora_b"}
    if magnitude:
        names[f"{stem}lora_magnitude_vector"] = "magnitude"
    return names


def peft_embedding_names(module: str) -> tuple[str, str]:
    """Return PEFT's names of A [rank, V] and B [H, rank] of an adapted table of embeddings."""
    return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"


def peft_base_name(module: str) -> str:
    """Return PEFT's name of the weight that an adapted module had before."""
    return f"{PREFIX}{module}.base_layer.weight"


def peft_config(options: LoraOptions, base: str, adapted: Sequence[str], *, dora: bool) -> dict[str, Any]:
    """Return adapter_config.json. Targets that PEFT would not understand become the full names in `adapted`."""
    targets = options.targets
    if isinstance(targets, list) and not all(is_plain(target) for target in targets):
        targets = list(adapted)
    elif isinstance(targets, str) and is_plain(targets) and targets != "all-linear" and adapted:
        targets = list(adapted)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": options.rank,
        "lora_alpha": _number(options.alpha),
        "lora_dropout": options.dropout,
        "target_modules": targets,
        "bias": options.bias,
        "use_rslora": options.rslora,
        "use_dora": dora,
        "init_lora_weights": True if options.init == "default" else options.init,
        "rank_pattern": dict(options.rank_pattern),
        "alpha_pattern": {key: _number(value) for key, value in options.alpha_pattern.items()},
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def check_tensors(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Compare names and shapes. Raises ModelError listing what is missing, unexpected or of a wrong shape together."""
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in expected]
    problems += [
        f"wrong shape: {name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError(
            f"the adapter's tensors do not fit the model:\n  {shown}{more}",
            fix="use the rank and targets of adapter_config.json, and the base model that it names",
        )


def open_adapter(folder: str | Path) -> tuple[LoraAdapter, dict[str, Tensor]]:
    """Read an adapter folder of PEFT's: the adapter to attach, and its tensors to load.

    Raises ModelError naming the file that is missing or damaged, or the setting that is not supported.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pegboard_lora.adapter import DoraAdapter, LoraAdapter

    folder = Path(folder)
    settings = read_settings(folder)
    try:
        tensors = load_file(folder / TENSOR_FILE)
    except SafetensorError as error:
        raise ModelError(f"{folder / TENSOR_FILE} is damaged: {error}", fix="fetch or save the adapter again") from None
    kind = DoraAdapter if settings.get("use_dora") else LoraAdapter
    return kind(options_of(settings, str(folder / CONFIG_FILE))), tensors


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the content of adapter_config.json. Raises ModelError naming the file that is missing or damaged."""
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} is no adapter folder: {name} is missing", fix="name a folder that PEFT or Pegboard saved"
            )
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG_FILE} is damaged: {error}", fix="fetch or save the adapter again") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / CONFIG_FILE} holds no JSON object", fix="fetch or save the adapter again")
    return settings


def options_of(settings: Mapping[str, Any], path: str) -> LoraOptions:
    """Return the options that an adapter_config.json means. path: how to call it. Raises ModelError naming what is not supported."""
    fix = "pegboard-lora reads plain LoRA and DoRA of linear layers"
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {settings.get('peft_type')!r}, expected 'LORA'", fix=fix)
    settings = {**settings, "modules_to_save": without_score(settings.get("modules_to_save"))}
    refused = [
        key for key, value in settings.items() if key not in _NEUTRAL | _READ and value not in (None, False, [], {}, "")
    ]
    if settings.get("bias", "none") != "none":
        refused.append("bias")
    if settings.get("init_lora_weights", True) not in _KEEPS_BASE:
        refused.append("init_lora_weights")
    if refused:
        listed = ", ".join(f"{key}={settings[key]!r}" for key in sorted(refused))
        raise ModelError(f"{path}: not supported: {listed}", fix=fix)
    renames = {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "target_modules": "targets",
        "use_rslora": "rslora",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
    }
    values = {ours: settings[theirs] for theirs, ours in renames.items() if settings.get(theirs) is not None}
    if settings.get("init_lora_weights") == "gaussian":
        values["init"] = "gaussian"
    try:
        return LoraOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path}: {where}: {first['msg']}", fix="fetch or save the adapter again") from None


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
