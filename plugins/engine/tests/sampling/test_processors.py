"""Logits processors of an installed plugin: their order, what they see, and whom their errors hit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pegboard.errors import ConfigError, PluginError
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.sampling.params import check_processors
from pegboard_engine.sampling.sampler import Sampler
from pegboard_sdk.site import Site

VOCAB = 20
DOOR = """
from pegboard.plugins.spec import PluginSpec

ADD = PluginSpec(kind="logits_processor", target="acme_bias.impl:Add", schema="acme_bias.impl:Options")
ECHO = PluginSpec(kind="logits_processor", target="acme_bias.impl:Echo")
"""
IMPLEMENTATION = """
import torch
from pydantic import BaseModel, ConfigDict

from pegboard.interfaces.logits_processor import LogitsProcessor


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: int
    value: float = 1.0
    factor: float = 1.0
    fails_after: int = 100


class Add(LogitsProcessor):
    '''Multiplies a row, then adds to an id.'''

    def process(self, logits, rows):
        options = [row.options for row in rows]
        for row in rows:
            if len(row.output_ids) >= row.options.fails_after:
                raise RuntimeError(f"after {list(row.output_ids)}")
        logits *= torch.tensor([[one.factor] for one in options])
        for i, one in enumerate(options):
            logits[i, one.id] += one.value
        return logits


class Echo(LogitsProcessor):
    '''Allows nothing but the last token plus one, of the prompt where there is no output.'''

    calls = 0

    def process(self, logits, rows):
        Echo.calls += 1
        assert all(row.options is None for row in rows)
        last = torch.tensor([[*row.prompt_ids, *row.output_ids][-1] + 1 for row in rows])
        return torch.full_like(logits, float("-inf")).scatter(1, last[:, None] % logits.shape[1], 1.0)
"""


@pytest.fixture
def registry(plugin_site: Site) -> Registry:
    """A registry with a plugin that offers the processors `add` and `echo`."""
    plugin_site.add(
        "acme-bias",
        {("logits_processor", "add"): "acme_bias.plugin:ADD", ("logits_processor", "echo"): "acme_bias.plugin:ECHO"},
        {"acme_bias.plugin": DOOR, "acme_bias.impl": IMPLEMENTATION},
    )
    return Registry.discover()


def setup(registry: Registry, *params: Any) -> tuple[SamplingColumns, Sampler]:
    """Return columns and a sampler for greedy requests with the given processors and a prompt of 5."""
    columns = SamplingColumns(len(params), VOCAB)
    for slot, processors in enumerate(params):
        columns.set(slot, SamplingParams(temperature=0, processors=processors), seed=0, prompt_ids=[5])
    return columns, Sampler(VOCAB, "cpu", registry)


def step(columns: SamplingColumns, slots: list[int], position: int) -> Any:
    return columns.batch(np.array(slots, np.int32), np.full(len(slots), position))


def test_they_apply_in_their_order(registry: Registry) -> None:
    double, add = ("add", {"id": 0, "value": 0.0, "factor": 2.0}), ("add", {"id": 4, "value": 1.0})
    columns, sampler = setup(registry, (double, add), (add, double), (), (add,))
    logits = torch.zeros(4, VOCAB)
    logits[:, 7] = 0.75
    sampled = sampler.sample(logits, step(columns, [0, 1, 2, 3], 0))
    assert sampled.ids.tolist() == [7, 4, 7, 4]
    # In place, since they are float32: what each row was made of.
    assert logits[:, 4].tolist() == [1.0, 2.0, 0.0, 1.0] and logits[:, 7].tolist() == [1.5, 1.5, 0.75, 0.75]
    assert sampled.errors == {} and sampled.valid.all()


def test_they_see_tokens_that_the_host_does_not_know_yet(registry: Registry) -> None:
    columns, sampler = setup(registry, (("echo", {}),), ())
    batches = [step(columns, [0, 1] if i % 2 else [0], i) for i in range(6)]
    assert [int(sampler.sample(torch.zeros(len(b.slots), VOCAB), b).ids[0]) for b in batches] == [6, 7, 8, 9, 10, 11]
    # After a preemption the output comes from the host.
    columns.set(
        0, SamplingParams(temperature=0, processors=(("echo", {}),)), seed=0, prompt_ids=[5], output_ids=[6, 17]
    )
    assert sampler.sample(torch.zeros(1, VOCAB), step(columns, [0], 2)).ids.tolist() == [18]


def test_they_see_proposals_and_forget_what_was_rejected(registry: Registry) -> None:
    columns, sampler = setup(registry, (("echo", {}),))
    for position, proposed, wanted, accepted in ((0, [6, 7, 3], [6, 7, 8, 4], 2), (3, [], [9], 0)):
        rows = len(proposed) + 1
        batch = columns.batch(np.zeros(rows, np.int32), position + np.arange(rows))
        verified = sampler.verify(torch.zeros(rows, VOCAB), batch, [proposed])
        assert verified.ids.tolist() == wanted and verified.accepted.tolist() == [accepted]


def test_an_error_hits_the_row_that_causes_it(registry: Registry) -> None:
    fails = ("add", {"id": 1, "fails_after": 1})
    add = ("add", {"id": 2})
    columns, sampler = setup(registry, (add,), (fails, ("echo", {})), (add,))
    assert sampler.sample(torch.zeros(3, VOCAB), step(columns, [0, 1, 2], 0)).ids.tolist() == [2, 6, 2]
    sampled = sampler.sample(torch.zeros(3, VOCAB), step(columns, [0, 1, 2], 1))
    assert sampled.valid.tolist() == [True, False, True]
    assert [sampled.ids.tolist()[i] for i in (0, 2)] == [2, 2]
    assert sampled.errors == {1: "logits processor 'add': RuntimeError: after [6]"}


def test_a_proposal_does_not_stand_where_a_processor_failed(registry: Registry) -> None:
    """Though the logits, which are as the model gave them, would agree with it."""
    columns, sampler = setup(registry, (("add", {"id": 3, "value": 9.0, "fails_after": 1}),))
    logits = torch.zeros(3, VOCAB)
    logits[:, 3] = 1.0
    batch = columns.batch(np.zeros(3, np.int32), np.arange(3))
    verified = sampler.verify(logits, batch, [[3, 3]])
    assert verified.ids.tolist() == [3, 3, 3] and verified.valid.tolist() == [True, False, False]
    assert verified.accepted.tolist() == [1] and sorted(verified.errors) == [1, 2]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "TypeError: it returned NoneType in place of float32 [1, 20]"),
        ("return logits[:, :5]", "TypeError: it returned torch.float32 [1, 5] in place"),
        ("return logits.long()", "TypeError: it returned torch.int64 [1, 20] in place"),
        ("return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_is_no_logits_is_an_error(plugin_site: Site, body: str, said: str) -> None:
    source = IMPLEMENTATION + f"\n\nclass Bad(LogitsProcessor):\n    def process(self, logits, rows):\n        {body}\n"
    door = DOOR + '\nBAD = PluginSpec(kind="logits_processor", target="acme_bias.impl:Bad")\n'
    plugin_site.add(
        "acme-bias",
        {("logits_processor", "bad"): "acme_bias.plugin:BAD"},
        {"acme_bias.plugin": door, "acme_bias.impl": source},
    )
    columns, sampler = setup(Registry.discover(), (("bad", {}),), ())
    sampled = sampler.sample(torch.zeros(2, VOCAB), step(columns, [0, 1], 0))
    assert sampled.valid.tolist() == [False, True]
    assert said in sampled.errors[0]


def test_a_row_of_nan_is_invalid(registry: Registry) -> None:
    columns, sampler = setup(registry, (("add", {"id": 1, "value": float("nan")}),), ())
    assert sampler.sample(torch.zeros(2, VOCAB), step(columns, [0, 1], 0)).valid.tolist() == [False, True]


def test_options_are_checked_when_a_request_comes(registry: Registry) -> None:
    check_processors(SamplingParams(processors=(("add", {"id": 3}), ("echo", {}))), registry)
    with pytest.raises(ConfigError, match="id"):
        check_processors(SamplingParams(processors=(("add", {"id": "x"}),)), registry)
    with pytest.raises(ConfigError, match="'echo' takes no options, given: x"):
        check_processors(SamplingParams(processors=(("echo", {"x": 1}),)), registry)
    with pytest.raises(PluginError, match="no installed plugin offers logits_processor 'ecco'"):
        check_processors(SamplingParams(processors=(("ecco", {}),)), registry)


def test_a_worker_without_processors_says_so() -> None:
    columns = SamplingColumns(1, VOCAB)
    columns.set(0, SamplingParams(processors=(("add", {}),)), seed=0)
    sampled = Sampler(VOCAB, "cpu").sample(torch.zeros(1, VOCAB), step(columns, [0], 0))
    assert not sampled.valid.any() and "was given no logits processors" in sampled.errors[0]


def test_one_call_for_all_rows(registry: Registry) -> None:
    columns, sampler = setup(registry, *[(("echo", {}),)] * 9)
    echo = registry.load("logits_processor", "echo")
    sampler.sample(torch.zeros(9, VOCAB), step(columns, list(range(9)), 0))
    assert echo.calls == 1
