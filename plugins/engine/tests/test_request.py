from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from pegboard.errors import ConfigError
from pegboard.types import SamplingParams
from pegboard_engine.request import FINISH_REASONS, TRANSITIONS, Request, State, check_params

LEGAL = {
    "waiting": "running aborted failed",
    "running": "preempted stopped length aborted failed",
    "preempted": "running aborted failed",
    "stopped": "",
    "length": "",
    "aborted": "",
    "failed": "",
}


def request(**params: Any) -> Request:
    return Request("r", [1, 2], SamplingParams(**params), limit=4, seed=0, stop_ids=frozenset({9}))


@pytest.mark.parametrize(("source", "target"), list(product(State, State)))
def test_every_transition(source: State, target: State) -> None:
    one = request()
    one.state = source
    if target.value in LEGAL[source.value].split():
        one.to(target)
        assert one.state is target
    else:
        with pytest.raises(RuntimeError, match=f"{source.value} -> {target.value} is not a legal transition"):
            one.to(target)
        assert one.state is source
    assert one.finished == (not LEGAL[one.state.value])


def test_terminal_states_have_a_reason_each() -> None:
    assert set(FINISH_REASONS) == {state for state, targets in TRANSITIONS.items() if not targets}


def test_append_says_how_a_request_ends() -> None:
    one = request()
    assert one.append(5) is None
    assert (one.confirmed, one.num_output) == (3, 1)
    assert one.append(6) is State.LENGTH
    assert request().append(9) is State.STOPPED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ("a", "")),
    ],
)
def test_refuses_sampling_without_a_meaning(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is ") as caught:
        check_params(SamplingParams(**{name: value}))  # type: ignore[arg-type]
    assert caught.value.fix is not None
    assert name in caught.value.fix
    check_params(SamplingParams())
