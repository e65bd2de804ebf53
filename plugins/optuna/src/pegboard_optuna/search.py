"""The search: Optuna's TPE, asked anew for every proposal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from pegboard.interfaces.search import Axis, Point, Search, Trial
from pegboard_sweep.searches import needs_samples, written

STARTUP = 10
"""Runs with random settings, before their results say anything."""


class OptunaSearch(Search):
    """Chooses settings by what earlier ones came to. The study lives as long as a proposal: the sweep's records are the only state."""

    adaptive = True

    def count(self, axes: Sequence[Axis], samples: int | None) -> int:
        """Return `samples`, which must be given."""
        return needs_samples("optuna", samples)

    def propose(
        self, axes: Sequence[Axis], number: int, history: Sequence[Trial], *, seed: int, maximise: bool
    ) -> Point:
        """Return the settings that promise most."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = TPESampler(n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=_mixed(seed, number))
        study = optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)
        space = {axis.key: distribution(axis) for axis in axes}
        for trial in sorted(history, key=lambda trial: trial.number):
            study.add_trial(_frozen(trial, axes, space))
        asked = study.ask(space)
        return {axis.key: _text(axis, asked.params[axis.key]) for axis in axes}


def distribution(axis: Axis) -> BaseDistribution:
    """Return Optuna's form of an axis."""
    if axis.values:
        return CategoricalDistribution(list(axis.values))
    if axis.integer:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _frozen(trial: Trial, axes: Sequence[Axis], space: dict[str, BaseDistribution]) -> Any:
    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING}
    params = {axis.key: _value(axis, trial.point[axis.key]) for axis in axes}
    complete = trial.status == "finished" and trial.value is not None
    return create_trial(
        state=TrialState.COMPLETE if complete else states[trial.status],
        params=params,
        distributions=space,
        value=trial.value if complete else None,
    )


def _value(axis: Axis, text: str) -> Any:
    if axis.values:
        return text
    return int(text) if axis.integer else float(text)


def _text(axis: Axis, value: Any) -> str:
    return str(value) if axis.values else written(axis, value)


def _mixed(seed: int, number: int) -> int:
    """Return a seed of its own for each proposal: the study is new, and would draw the same again."""
    return (seed * 1_000_003 + number) % 2**32
