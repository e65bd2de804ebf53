from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.types import AttentionInputs, StepPlan
from pegboard_engine.executor import UniprocExecutor
from pegboard_sdk.toys.model import logits

IDS = [3, 1, 4, 1, 5]


@pytest.fixture
def executor(built: BuiltModel) -> Iterator[UniprocExecutor]:
    specs = built.model.attention_specs
    layout = built.attention.layout(specs[0], len(specs), 8, built.dtype)
    loaded = UniprocExecutor()
    loaded.load(built, layout, 2)
    yield loaded
    loaded.close()


def plan(rows: list[int]) -> StepPlan:
    """One prompt in page 1; a greedy token for each of `rows`."""
    count = len(IDS)
    inputs = AttentionInputs([count], [count], [[1]], torch.arange(8, 8 + count))
    return StepPlan(1, torch.tensor(IDS), torch.arange(count), inputs, torch.tensor(rows, dtype=torch.int64), None)


@pytest.mark.parametrize("rows", [[4], [0, 1, 2, 3, 4], [1, 3], []], ids=str)
def test_a_step_gives_a_token_for_each_row_asked_for(
    executor: UniprocExecutor, built: BuiltModel, rows: list[int]
) -> None:
    result = executor.collect(executor.submit(plan(rows)))
    assert result.token_ids.tolist() == logits(built, torch.tensor(IDS)).argmax(-1)[rows].tolist()
    assert result.extras["valid"].tolist() == [True] * len(rows)


def test_steps_are_collected_once_and_in_order(executor: UniprocExecutor) -> None:
    first = executor.submit(plan([4]))
    with pytest.raises(RuntimeError, match="in flight already"):
        executor.submit(plan([4]))
    with pytest.raises(RuntimeError, match=f"no step {first + 1} to collect"):
        executor.collect(first + 1)
    executor.collect(first)
    with pytest.raises(RuntimeError, match=f"no step {first} to collect"):
        executor.collect(first)
    assert executor.submit(plan([4])) == first + 1


def test_an_error_belongs_to_whoever_collects_the_step(executor: UniprocExecutor) -> None:
    broken = replace(plan([4]), input_ids=torch.tensor([999] * len(IDS)))
    handle = executor.submit(broken)
    with pytest.raises(IndexError):
        executor.collect(handle)
    executor.collect(executor.submit(plan([4])))


def test_without_a_model_nothing_runs(executor: UniprocExecutor) -> None:
    executor.close()
    executor.close()
    for unloaded in (executor, UniprocExecutor()):
        with pytest.raises(RuntimeError, match="not loaded, or closed"):
            unloaded.submit(plan([4]))
        with pytest.raises(RuntimeError, match="not loaded, or closed"):
            unloaded.update_weights(1)
