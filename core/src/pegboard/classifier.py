"""Models with a score in the place of logits: rewards and values, in the layout of Hugging Face's sequence classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

HeadKind = Literal["auto", "lm", "scalar"]
"""What a model gives for each token: logits over the vocabulary, or one score; "auto" is what its files say."""

SCORE = "score.weight"
CLASSIFIER, CAUSAL = "ForSequenceClassification", "ForCausalLM"


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a sequence classifier."""
    return any(isinstance(name, str) and name.endswith(CLASSIFIER) for name in _architectures(config))


def causal_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the causal model that a classifier is made of; any other config as it is."""
    if not is_classifier(config):
        return config
    return {**config, "architectures": _renamed(config, CLASSIFIER, CAUSAL)}


def classifier_config(config: Mapping[str, Any], labels: int) -> dict[str, Any]:
    """Return the config.json of a classifier with `labels` labels over the causal model of `config`.

    Hugging Face counts labels by their names, and finds the last token of a row by the padding id, so that one must be there.
    """
    names = {str(index): f"LABEL_{index}" for index in range(labels)}
    eos = config.get("eos_token_id")
    padding = config.get("pad_token_id")
    if padding is None:
        padding = eos[0] if isinstance(eos, list) and eos else eos
    return {
        **config,
        "architectures": _renamed(config, CAUSAL, CLASSIFIER),
        "id2label": names,
        "label2id": {name: int(index) for index, name in names.items()},
        "pad_token_id": padding,
    }


@torch.no_grad()
def draw_score(weight: Tensor, config: Mapping[str, Any], seed: int) -> None:
    """Give a new score its first values: normal, of the config's `initializer_range`; drawn on the host, the same everywhere."""
    spread = float(config.get("initializer_range") or 0.02)
    generator = torch.Generator().manual_seed(seed)
    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * spread)


def _architectures(config: Mapping[str, Any]) -> list[Any]:
    names = config.get("architectures")
    return names if isinstance(names, list) else []


def _renamed(config: Mapping[str, Any], old: str, new: str) -> list[Any]:
    return [n.removesuffix(old) + new if isinstance(n, str) and n.endswith(old) else n for n in _architectures(config)]
