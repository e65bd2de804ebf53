from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pegboard.types import SamplingParams
from pegboard_engine.request import FINISH_REASONS, TRANSITIONS, Request, State

ENDS = "aborted timed_out failed"
LEGAL = {
    "waiting_for_grammar": f"waiting {ENDS}",
    "waiting": f"running {ENDS}",
    "running": f"preempted stopped length {ENDS}",
    "preempted": f"running {ENDS}",
    "stopped": "",
    "length": "",
    "aborted": "",
    "timed_out": "",
    "failed": "",
}


@pytest.mark.parametrize(("source", "target"), list(product(State, State)))
def test_every_transition(source: State, target: State) -> None:
    one = Request("r", np.array([1, 2], dtype=np.int32), SamplingParams(), limit=4)
    one.state = source
    if target.value in LEGAL[source.value].split():
        one.to(target)
        assert one.state is target
    else:
        with pytest.raises(RuntimeError, match=f"{source.value} -> {target.value} is not a legal transition"):
            one.to(target)
        assert one.state is source
    assert one.finished == (not LEGAL[one.state.value])


def test_the_table_of_the_docstring_is_the_one_that_counts() -> None:
    import pegboard_engine.request as module

    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("    ")]
    targets = lines[0].split()[3:]
    for line in lines[1:]:
        source = line.split()[0]
        marked = {
            targets[i]
            for i, name in enumerate(targets)
            if line[lines[0].index(f" {name}") :].strip()[:1] == "x"
            and "x" in line[lines[0].index(f" {name}") : lines[0].index(f" {name}") + len(name) + 2]
        }
        assert marked == set(LEGAL[source].split()), source


def test_terminal_states_have_a_reason_each() -> None:
    assert set(FINISH_REASONS) == {state for state, targets in TRANSITIONS.items() if not targets}
