from __future__ import annotations

from pathlib import Path

import pytest

from pegboard_bench.train.command import medians, table
from pegboard_bench.train.data import RandomRows, RandomTokens, SourceOptions, TransformOptions
from pegboard_bench.train.measure import Plan, figures
from pegboard_sdk.toys.tokenizer import TinyTokenizer


def test_random_tokens_are_the_same_every_time(tiny_tokenizer: TinyTokenizer) -> None:
    source, transform = RandomRows(SourceOptions(rows=3)), RandomTokens(TransformOptions(length=50))
    assert [index for index, _ in source.rows(1)] == [1, 2]
    examples = [transform(source.row(index), tiny_tokenizer)[0] for index in range(3)]
    assert [row.input_ids for row in examples] == [
        transform(source.row(i), tiny_tokenizer)[0].input_ids for i in range(3)
    ]
    assert examples[0].input_ids != examples[1].input_ids
    for row in examples:
        assert (len(row.input_ids), row.mask) == (50, [True] * 50)
        assert 0 <= min(row.input_ids) <= max(row.input_ids) < tiny_tokenizer.vocab_size


def test_figures_are_medians_after_the_warm_up() -> None:
    steps = [
        {"tokens": 100.0, "tokens_per_second": rate, "mfu": rate / 1000, "memory_gb": 1 + rate / 100, "loss": 2.0}
        for rate in (10, 50, 100, 20)
    ]
    told = figures(steps, warmup=1)
    assert told["tokens_per_second"] == 50 and told["step_seconds"] == 2.0
    assert (told["fastest_step_seconds"], told["first_step_seconds"]) == (1.0, 10.0)
    assert (told["mfu"], told["memory_gb"], told["steps"]) == (0.05, 1.2, 3)


def test_medians_of_configs_as_a_table() -> None:
    runs = [
        {"config": config, "tokens_per_second": rate, "step_seconds": 1.0, "memory_gb": 2.0, "mfu": mfu}
        for config, rate, mfu in (("a/full.yaml", 10.0, 0.5), ("lora", 40.0, None), ("a/full.yaml", 30.0, 0.5))
    ]
    found = medians(runs)
    assert found["a/full.yaml"]["tokens_per_second"] == 20.0
    assert [line.split() for line in table(found)[1:]] == [
        ["full", "20.0", "1.000", "2.00", "50.0%"],
        ["lora", "40.0", "1.000", "2.00", "-"],
    ]


@pytest.mark.parametrize("override", ["data.path=x", "data=x", "model=m"])
def test_data_of_the_users_replaces_random_tokens(override: str) -> None:
    arguments = Plan("sft", 5, 1, 4, 512, [override]).arguments("full", Path("out"))
    assert any("RandomTokens" in text for text in arguments) is override.startswith("model")
    assert arguments[-2:] == [override, "output=out"] and "steps=6" in arguments
