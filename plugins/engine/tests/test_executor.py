from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pegboard.build import BuiltModel
from pegboard.plugins.load import Registry
from pegboard.types import CachePlan, StepPlan
from pegboard_engine.executor import UniprocExecutor
from pegboard_sdk.toys.model import logits
from pegboard_sdk.toys.plans import prompt_plan

IDS = [3, 1, 4, 1, 5]


@pytest.fixture
def executor(built: BuiltModel) -> Iterator[UniprocExecutor]:
    specs = built.model.attention_specs
    layout = built.attention.layout(specs[0], len(specs), 8, built.dtype)
    loaded = UniprocExecutor()
    loaded.load(built, CachePlan(layout, 2, 2, 1), Registry.of({}))
    yield loaded
    loaded.close()


plan = partial(prompt_plan, IDS)


@pytest.mark.parametrize("rows", [[4], [0, 1, 2, 3, 4], [1, 3], []], ids=str)
def test_a_step_gives_a_token_for_each_row_asked_for(
    executor: UniprocExecutor, built: BuiltModel, rows: list[int]
) -> None:
    result = executor.collect(executor.submit(plan(rows)))
    assert result.token_ids.tolist() == logits(built, torch.tensor(IDS)).argmax(-1)[rows].tolist()
    assert result.extras["valid"].tolist() == [True] * len(rows)


def test_a_token_that_is_not_known_yet_is_the_one_sampled_last(executor: UniprocExecutor, built: BuiltModel) -> None:
    first = int(executor.collect(executor.submit(plan([4]))).token_ids[0])
    position = len(IDS)
    second = StepPlan(
        step=2,
        input_ids=np.array([-1]),
        positions=np.array([position]),
        slots=np.array([1], dtype=np.int32),
        query_lens=np.array([1], dtype=np.int32),
        seq_lens=np.array([position + 1], dtype=np.int32),
        slot_mapping=np.array([8 + position]),
        num_decodes=1,
        table=(np.array([], dtype=np.int32),) * 3,
        logits_indices=np.array([0]),
        logits_slots=np.array([1], dtype=np.int32),
    )
    found = executor.collect(executor.submit(second)).token_ids
    assert found.tolist() == [int(logits(built, torch.tensor([*IDS, first]))[-1].argmax())]


def test_hidden_states_beside_the_sampled_rows(executor: UniprocExecutor, built: BuiltModel) -> None:
    asked = plan([4])
    asked.extras = {
        "more_rows": np.array([0, 1, 3, 2, 3, 4]),
        "prompt": (np.array([*IDS[1:3], IDS[4]]), 2),
        "pool": np.array([[0, 1], [1, 3]]),
    }
    result = executor.collect(executor.submit(asked))
    whole = logits(built, torch.tensor(IDS))
    assert result.token_ids.tolist() == [int(whole[4].argmax())]
    (part,) = result.extras["prompt"]
    expected = whole.log_softmax(-1)[[0, 1, 3], [1, 4, 5]]
    assert torch.allclose(torch.from_numpy(part.chosen).double(), expected, atol=1e-5)
    assert part.top_ids.tolist() == whole[[0, 1, 3]].topk(2).indices.tolist()
    head = built.model.head.matrix.double()
    single, pair = torch.from_numpy(result.extras["pooled"]).double() @ head.T
    assert torch.allclose(single, whole[2], atol=1e-4)
    assert torch.allclose(pair, whole[3] + whole[4], atol=1e-4)


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
    broken = replace(plan([4]), input_ids=np.array([999] * len(IDS)))
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
