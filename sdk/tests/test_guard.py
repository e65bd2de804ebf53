"""A standard test is neither deleted nor overridden without a stated reason."""

from __future__ import annotations

from typing import Any

import pytest

from pegboard.plugins.spec import PluginSpec
from pegboard_sdk.conformance import LoggerSuite, PluginSuite
from pegboard_sdk.conformance.guard import problems, standard_tests

SPEC = PluginSpec(kind="logger", target="nowhere:Nothing")


def subclass(bases: tuple[type, ...] = (LoggerSuite,), **body: Any) -> type:
    return type("Acme", bases, {"spec": SPEC, **body})


def replaced(self: object) -> None:
    """A test of one's own."""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"test_run": replaced}, "test_run is overridden without a reason"),
        ({"test_run": None}, "test_run is deleted without a reason"),
        ({"test_run": replaced, "overrides": {"test_run": " "}}, "the reason is empty"),
        ({"overrides": {"test_run": "why"}}, "names test_run, which is not overridden"),
        ({"overrides": {"test_runs": "why"}}, "names test_runs, which is no standard test"),
        ({"test_standard_tests_are_whole": replaced}, "test_standard_tests_are_whole is overridden"),
    ],
)
def test_change_without_a_reason_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        subclass(**body)


def test_override_with_a_reason_is_allowed() -> None:
    cls = subclass(test_run=None, test_resume=replaced, overrides={"test_run": "no run", "test_resume": "another way"})
    assert problems(cls) == []


def test_helpers_flags_and_own_tests_are_free() -> None:
    assert problems(subclass(durable=False, read=replaced, test_of_my_own=replaced)) == []


def test_mixins_and_further_subclasses_are_seen() -> None:
    with pytest.raises(TypeError, match="test_run is overridden"):
        subclass((type("Mixin", (), {"test_run": replaced}), LoggerSuite))
    with pytest.raises(TypeError, match="test_run is deleted"):
        subclass((subclass(),), test_run=None)


def test_suites_hold_the_tests_of_their_bases() -> None:
    assert set(standard_tests(PluginSuite)) < set(standard_tests(LoggerSuite)) == set(standard_tests(subclass()))
