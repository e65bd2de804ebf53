"""A score in the place of logits."""

from __future__ import annotations

from typing import Any

import torch

from pegboard.build import BuiltModel, build_model
from pegboard.classifier import SCORE, causal_config, classifier_config, is_classifier
from pegboard.plugins.load import Registry
from pegboard_sdk.toys.model import _ATTENTION, _FAMILY, _PLATFORM, TINY, Held, RandomFiles, TinyFamily, hidden_states


def registry() -> Registry:
    return Registry.of(
        {("platform", "host"): _PLATFORM, ("attention", "reference"): _ATTENTION, ("model", "tiny"): _FAMILY}
    )


def build(files: RandomFiles, **options: Any) -> BuiltModel:
    return build_model(registry(), files, dtype="float64", phase="train", **options)


def test_a_config_is_renamed_and_back() -> None:
    config = classifier_config({**TINY, "eos_token_id": [5, 6]}, 1)
    assert config["architectures"] == ["TinyForSequenceClassification"]
    assert (config["id2label"], config["label2id"], config["pad_token_id"]) == ({"0": "LABEL_0"}, {"LABEL_0": 0}, 5)
    assert is_classifier(config) and not is_classifier(TINY)
    assert causal_config(config)["architectures"] == ["TinyForCausalLM"]
    assert causal_config(TINY) is TINY


def test_a_new_score_is_drawn_and_trained() -> None:
    files = RandomFiles(TinyFamily(), TINY)
    one, same, other = (build(files, head="scalar", seed=seed) for seed in (3, 3, 4))
    matrix = one.model.head.matrix
    assert matrix.shape == (1, TINY["hidden_size"]) and matrix.requires_grad
    assert matrix.equal(same.model.head.matrix) and not matrix.equal(other.model.head.matrix)
    assert 0.005 < matrix.std() < 0.05
    assert "lm_head.weight" not in dict(one.model.named_parameters())
    ids = torch.randint(260, (7,), generator=torch.Generator().manual_seed(0))
    hidden = hidden_states(one, ids)
    torch.testing.assert_close(one.model.head(hidden), hidden @ matrix.T, rtol=1e-12, atol=0)
    assert one.config["architectures"] == ["TinyForSequenceClassification"]
    # The states are those of the model that it was made of.
    torch.testing.assert_close(hidden, hidden_states(build(files), ids), rtol=0, atol=0)


def test_a_folder_of_a_classifier_is_read_as_one() -> None:
    files = RandomFiles(TinyFamily(), TINY)
    score = torch.randn(2, TINY["hidden_size"], dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    files.config = {**classifier_config(TINY, 2)}
    files.tensors = {
        **{name: tensor for name, tensor in files.tensors.items() if name != "lm_head.weight"},
        SCORE: Held(SCORE, score),
    }
    built = build(files)
    assert built.model.head.matrix.equal(score)
    assert built.config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
