"""Observers: whoever cares is told; one that raises is muted and breaks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import PluginError
from pegboard.plugins.hooks import HookRelay, HookSpecs, hookimpl
from pegboard.plugins.load import Registry

OBSERVER = """
from pegboard.plugins.spec import PluginSpec
from pegboard.plugins.hooks import hookimpl
S = PluginSpec(kind="hooks", target=__name__ + ":Observer")
class Observer:
    @hookimpl
    def {hook}:
        {body}
"""


class Recorder:
    """Takes some of the hooks, and some of their arguments."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def step_finished(self, step: int) -> None:
        self.seen.append(step)

    @hookimpl
    def checkpoint_saved(self, step: int, folder: Path) -> None:
        self.seen.append((step, folder))


class Raiser:
    @hookimpl
    def step_finished(self) -> None:
        raise RuntimeError("odd")

    @hookimpl
    def run_finished(self) -> None:
        raise AssertionError("a muted observer was called")


def relay() -> tuple[HookRelay, list[str]]:
    warnings: list[str] = []
    return HookRelay(warnings.append), warnings


def test_observers_take_the_arguments_that_they_like() -> None:
    hooks, warnings = relay()
    recorder = Recorder()
    hooks.register(recorder, "recorder")
    hooks.call("step_finished", step=3, metrics={"loss": 1.0})
    hooks.call("checkpoint_saved", step=4, folder=Path("x"))
    hooks.call("run_finished", status="finished")
    assert recorder.seen == [3, (4, Path("x"))]
    assert warnings == []


def test_who_raises_is_muted_for_good_and_stops_nobody() -> None:
    hooks, warnings = relay()
    before, after = Recorder(), Recorder()
    hooks.register(before, "before")
    hooks.register(Raiser(), "raiser")
    hooks.register(after, "after")
    for step in (1, 2):
        hooks.call("step_finished", step=step, metrics={})
    hooks.call("run_finished", status="finished")
    assert before.seen == after.seen == [1, 2]
    assert warnings == ["observer raiser raised in step_finished and is muted: RuntimeError: odd"]
    assert hooks.names == ["before", "after"]


def test_results_are_collected_without_none() -> None:
    class Says:
        def __init__(self, lines: list[str] | None) -> None:
            self.lines = lines

        @hookimpl
        def doctor(self) -> list[str] | None:
            return self.lines

    hooks, _ = relay()
    for number, lines in enumerate((["a"], None, ["b", "c"])):
        hooks.register(Says(lines), str(number))
    assert sorted(hooks.call("doctor")) == [["a"], ["b", "c"]]


class WrongArgument:
    @hookimpl
    def configure(self, config: Any) -> None:
        raise AssertionError("left behind by a registration that failed")

    @hookimpl
    def step_finished(self, no_such_argument: int) -> None: ...


class WrongName:
    @hookimpl
    def configure(self, config: Any) -> None:
        raise AssertionError("left behind by a registration that failed")

    @hookimpl
    def step_finnished(self) -> None: ...


@pytest.mark.parametrize(
    ("observer", "cause"),
    [(WrongArgument(), "no_such_argument"), (WrongName(), "there is no hook step_finnished")],
)
def test_a_registration_that_fails_leaves_nothing_behind(observer: object, cause: str) -> None:
    """pluggy keeps the methods that it took before the one that it refused."""
    hooks, warnings = relay()
    with pytest.raises(PluginError, match="observer wrong cannot be registered") as caught:
        hooks.register(observer, "wrong")
    assert cause in caught.value.message
    assert hooks.names == []
    hooks.call("configure", config={})
    assert warnings == []
    recorder = Recorder()
    hooks.register(recorder, "wrong")
    hooks.call("step_finished", step=1, metrics={})
    assert recorder.seen == [1]


def test_a_name_is_taken_once() -> None:
    hooks, _ = relay()
    first, second = Recorder(), Recorder()
    hooks.register(first, "same")
    with pytest.raises(PluginError, match="cannot be registered"):
        hooks.register(second, "same")
    hooks.call("step_finished", step=1, metrics={})
    assert (first.seen, second.seen) == ([1], [])


@pytest.mark.parametrize("arguments", [{}, {"step": 1}, {"step": 1, "metrics": {}, "more": 1}])
def test_a_call_with_other_arguments_is_our_own_mistake(arguments: dict[str, Any]) -> None:
    hooks, _ = relay()
    with pytest.raises(TypeError, match="step_finished takes"):
        hooks.call("step_finished", **arguments)


def test_every_hook_can_be_called() -> None:
    hooks, _ = relay()
    for name in [name for name in vars(HookSpecs) if not name.startswith("_")]:
        arguments = dict.fromkeys(HookSpecs.__dict__[name].__annotations__.keys() - {"return"})
        assert hooks.call(name, **arguments) == []


def test_two_installed_observers_of_one_name_are_both_called(site) -> None:
    """pluggy alone would drop the second; nobody asked for either by name, so there is nothing to refuse."""
    for dist in ("one", "two"):
        source = OBSERVER.format(hook="doctor(self)", body=f"return ['{dist}']")
        site.add(f"{dist}-peg", {("hooks", "watch"): f"watch_{dist}:S"}, {f"watch_{dist}": source})
    hooks = Registry.discover().hooks
    assert sorted(hooks.names) == ["one-peg:watch", "two-peg:watch"]
    assert sorted(hooks.call("doctor")) == [["one"], ["two"]]


def test_installed_observers_that_fail_are_left_out_with_a_line(site, caplog) -> None:
    good = OBSERVER.format(hook="doctor(self)", body="return ['here']")
    site.add("good-peg", {("hooks", "good"): "watch_good:S"}, {"watch_good": good})
    site.add("door-peg", {("hooks", "door"): "watch_door:S"}, {"watch_door": "1/0"})
    wrong = OBSERVER.format(hook="no_such_hook(self)", body="return 1")
    site.add("wrong-peg", {("hooks", "wrong"): "watch_wrong:S"}, {"watch_wrong": wrong})
    site.add("off-peg", {("hooks", "off"): "watch_off:S"}, {"watch_off": good})
    registry = Registry.discover(disabled=["off-peg"])
    assert registry.hooks is registry.hooks
    assert registry.hooks.call("doctor") == [["here"]]
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    assert any("passing by hooks door-peg:door" in line for line in lines)
    assert any("observer wrong-peg:wrong is left out" in line and "no_such_hook" in line for line in lines)
    assert "watch_off" not in site.imported()
