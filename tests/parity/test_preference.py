"""Losses and gradients of preference methods and reward models are TRL's, of the same models over the same tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard.build import BuiltModel
from pegboard.interfaces.objective import Objective
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import Batch, Row
from pegboard_trainer.collate import collate
from pegboard_trainer.roles import ModelRole

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
WORDS = [f"w{number}" for number in range(94)]
RELATIVE = 1e-5


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy and a reference that differ."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folder = tmp_path_factory.mktemp("models") / str(seed)
        model.save_pretrained(folder)
        made.append(folder)
    return made[0], made[1]


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def ours(folder: Path) -> BuiltModel:
    registry = Registry.discover()
    return open_any(registry, str(folder)).build(registry, dtype="float32", platform="cpu", phase="train")


def roles_of(policy: Path, reference: Path | None = None) -> dict[str, ModelRole]:
    roles = {"policy": ModelRole(ours(policy), trained=True)}
    if reference is not None:
        roles["reference"] = ModelRole(ours(reference), trained=False)
    return roles


def objective(name: str, **options: Any) -> Objective:
    found: Objective = Registry.discover().create("objective", {"use": name, **options})
    return found


def words(seed: int, count: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())


def pairs() -> list[dict[str, str]]:
    return [
        {"prompt": words(n, 3 + n), "chosen": " " + words(10 + n, 2 + 2 * n), "rejected": " " + words(20 + n, 7 - n)}
        for n in range(4)
    ]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    common = {"output_dir": str(folder), "use_cpu": True, "report_to": [], "bf16": False, "fp16": False}
    return {**common, "per_device_train_batch_size": 4, "activation_checkpointing": False, **more}


def sequences(ids: Tensor, attended: Tensor, learned: Tensor) -> list[tuple[list[int], list[bool]]]:
    """The sequences of a padded batch with the tokens that count."""
    found = []
    for row, keep, mask in zip(ids, attended.bool(), learned.bool(), strict=True):
        found.append((row[keep].tolist(), mask[keep].tolist()))
    return found


def as_pairs(ids: Tensor, attended: Tensor, learned: Tensor) -> Batch:
    """Chosen answers first, then rejected ones in the same order, as TRL lays them."""
    rows = sequences(ids, attended, learned)
    half = len(rows) // 2
    return collate([(Row(*rows[i], part="chosen"), Row(*rows[half + i], part="rejected")) for i in range(half)])


def compare(made: Objective, roles: Mapping[str, ModelRole], batch: Batch, model: Any, loss: Tensor) -> None:
    """Loss and the gradient of every parameter."""
    out = made(roles, batch)
    mine = out.sum / made.denominator(batch)
    assert mine.item() == pytest.approx(loss.item(), rel=RELATIVE)
    mine.backward()
    loss.backward()
    (built,) = (role.built for role in roles.values() if role.trained)
    right = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {name: parameter.grad for name, parameter in built.model.named_parameters()}
    assert found.keys() == right.keys()
    scale = max(float(grad.abs().max()) for grad in right.values())
    for name, grad in right.items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-4, atol=RELATIVE * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {}),
    "robust": ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    "ipo": ({}, {}),
    "hinge": ({}, {}),
    "exo": ({"loss_type": ["exo_pair"], "label_smoothing": 0.01}, {"label_smoothing": 0.01}),
    "nca": ({"loss_type": ["nca_pair"]}, {}),
    "sppo": ({"loss_type": ["sppo_hard"]}, {}),
    "apo_zero": ({}, {}),
    "apo_down": ({}, {}),
    "discopop": ({}, {}),
    "average": ({"loss_type": ["sigmoid_norm"]}, {"loss": "sigmoid", "average": True}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_dpo(tmp_path: Path, folders: tuple[Path, Path], name: str) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    peer, own = LOSSES[name]
    config = DPOConfig(**settings(tmp_path, beta=0.2, **{"loss_type": [name], **peer}))
    model = theirs(folders[0])
    trainer = DPOTrainer(
        model, theirs(folders[1]), config, train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer()
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    mine = as_pairs(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    compare(objective("dpo", **{"beta": 0.2, "loss": name, **own}), roles_of(*folders), mine, model, loss)


@pytest.mark.parametrize(("peer", "own"), [("kto", "kto"), ("apo_zero_unpaired", "apo_zero")])
def test_kto(tmp_path: Path, folders: tuple[Path, Path], peer: str, own: str) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": number != 1}
        for number, pair in enumerate(pairs())
    ]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
    config = KTOConfig(**settings(tmp_path, beta=0.2, loss_type=peer, train_sampling_strategy="sequential", **weights))
    model = theirs(folders[0])
    trainer = KTOTrainer(
        model, theirs(folders[1]), config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    made = [
        Row(*sequence, part="desirable" if good else "undesirable")
        for sequence, good in zip(
            sequences(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]),
            batch["label"].tolist(),
            strict=True,
        )
    ]
    if own == "kto":
        others = (batch[f"KL_{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))
        made += [Row(*sequence, part="mismatched") for sequence in sequences(*others)]
    compare(objective("kto", beta=0.2, loss=own, **weights), roles_of(*folders), collate(made), model, loss)


def concatenated(trainer: Any) -> tuple[Any, Batch]:
    """The first batch of a trainer that keeps the answers of a pair apart, and the same as ours."""
    batch = next(iter(trainer.get_train_dataloader()))
    joined = trainer.concatenated_inputs(batch, padding_value=0, device=torch.device("cpu"))
    ids, attended, labels = (joined[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels"))
    return batch, as_pairs(ids, attended, labels != -100)


def test_orpo(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """The odds ratio is TRL's. The other term is the paper's: -log p of the chosen answer by token, pair by pair, while
    TRL takes the mean over all tokens of the batch, those of the prompts included.
    """
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config = ORPOConfig(**settings(tmp_path, beta=0.3))
    model = theirs(folders[0])
    trainer = ORPOTrainer(model, config, train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer())
    batch, mine = concatenated(trainer)
    chosen, rejected, *_ = trainer.concatenated_forward(model, batch)
    loss = (-chosen - trainer.odds_ratio_loss(chosen, rejected)[0]).mean()
    compare(objective("orpo", weight=0.3), roles_of(folders[0]), mine, model, loss)


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "label_smoothing": 0.1}, {"beta": 2.0, "gamma": 0.8}),
        ({"loss_type": "sigmoid", "beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.1, "gamma": 0.0, "average": False}),
    ],
    ids=["simpo", "cpo"],
)
def test_simpo(tmp_path: Path, folders: tuple[Path, Path], peer: dict[str, Any], own: dict[str, Any]) -> None:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(**settings(tmp_path, cpo_alpha=0.0, **peer))
    model = theirs(folders[0])
    trainer = CPOTrainer(model, config, train_dataset=Dataset.from_list(pairs()), processing_class=tokenizer())
    batch, mine = concatenated(trainer)
    loss, _ = trainer.get_batch_loss_metrics(model, batch)
    compare(objective("simpo", label_smoothing=0.1, **own), roles_of(folders[0]), mine, model, loss)


@pytest.mark.parametrize("center", [None, 0.05])
def test_reward_model(tmp_path: Path, folders: tuple[Path, Path], center: float | None) -> None:
    """A classifier that transformers wrote, with margins."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(folders[0], num_labels=1, dtype=torch.float32)
    model.save_pretrained(tmp_path / "classifier")
    rows = [
        {
            "chosen": pair["prompt"] + pair["chosen"],
            "rejected": pair["prompt"] + pair["rejected"],
            "margin": 0.3 * number,
        }
        for number, pair in enumerate(pairs())
    ]
    config = RewardConfig(**settings(tmp_path, center_rewards_coefficient=center, disable_dropout=True))
    trainer = RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    batch = next(iter(trainer.get_train_dataloader()))
    margins = batch["margin"].tolist()
    sequence = sequences(batch["input_ids"], batch["attention_mask"], batch["attention_mask"])
    loss = trainer.compute_loss(model, batch)
    half = len(sequence) // 2
    mine = collate(
        [
            (
                Row(*sequence[i], {"margin": margins[i]}, "chosen"),
                Row(*sequence[half + i], {"margin": margins[i]}, "rejected"),
            )
            for i in range(half)
        ]
    )
    roles = {"reward": ModelRole(ours(tmp_path / "classifier"), trained=True)}
    compare(objective("reward", center=center or 0.0), roles, mine, model, loss)


@pytest.mark.parametrize("config", ["full", "lora"])
def test_a_trained_reward_model_loads_and_scores_the_same(
    tmp_path: Path, folders: tuple[Path, Path], config: str
) -> None:
    """What `peg run reward` leaves, in transformers and PEFT and opened again here."""
    from transformers import AutoModelForSequenceClassification

    from pegboard.cli import run_cli

    base = tmp_path / "base"
    shutil.copytree(folders[0], base)
    tokenizer().save_pretrained(base)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs()))
    paths = [f"model={base}", f"data.path={data}", f"output={tmp_path / 'run'}"]
    small = [
        "steps=3",
        "batch.length=32",
        "model.dtype=float32",
        "model.platform=cpu",
        "loggers=[]",
        "data.format.chat=false",
    ]
    assert run_cli(["run", "reward", "--config", config, *paths, *small, "optimizer.lr=0.01"]) == 0
    final = tmp_path / "run" / "final"
    if config == "lora":
        from peft import PeftModel

        bare = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(bare, final)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(final, dtype=torch.float32)
    model.eval()
    built = ours(final)
    for length in (3, 9):
        ids = torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(length))
        states = built.model(ids, built.context([length], torch.arange(length)))
        mine = built.model.head(states)[-1, 0]
        torch.testing.assert_close(mine, model(input_ids=ids[None]).logits[0, 0], rtol=1e-4, atol=1e-5)
