from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devtools import environment as module
from devtools.environment import Environment
from devtools.workspace import DevError, Workspace

Make = Callable[[], Environment]


def calls(checkout: Path) -> list[list[str]]:
    """The command lines that pip was given since the last question."""
    path = checkout / ".venv" / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line)[2:] for line in lines]


def fail(checkout: Path, *words: str) -> None:
    (checkout / ".venv" / "fails").write_text("\n".join(words))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_torch_comes_first_and_all_members_in_one_call(checkout: Path, environment: Make) -> None:
    environment().setup()
    first, second = calls(checkout)
    common = ["install", "--no-build-isolation", "-c", str(checkout / "constraints.txt"), "torch==9.9.9"]
    assert first == [*common, "hatchling"]
    members = [word for name in ("core", "plugins/a", "plugins/b") for word in ("-e", str(checkout / name))]
    assert second == [*common, *members, "pytest", "hatchling"]
    assert environment().problems() == []


def test_nothing_happens_when_nothing_changed(
    checkout: Path, environment: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    environment().setup()
    calls(checkout)
    capsys.readouterr()
    environment().setup()
    assert calls(checkout) == []
    assert capsys.readouterr().out == ""
    environment().setup(force=True)
    assert len(calls(checkout)) == 2


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("plugins/a/pyproject.toml", "pegboard_a.plugin:SPEC", "pegboard_a.plugin:OTHER"),
        ("plugins/b/pyproject.toml", "It is", "It was"),
        ("pyproject.toml", '"pytest"', '"pytest", "ruff"'),
        ("constraints.txt", "pytest==1", "pytest==2"),
        (".venv/pyvenv.cfg", "3.12.1", "3.12.2"),
    ],
)
def test_a_change_sets_up_again(checkout: Path, environment: Make, file: str, old: str, new: str) -> None:
    environment().setup()
    calls(checkout)
    replace(checkout / file, old, new)
    assert environment().problems() == ["a pyproject.toml, constraints.txt or Python changed since the last setup"]
    environment().setup()
    assert len(calls(checkout)) == 2
    assert environment().problems() == []


def test_changed_c_sources_set_up_again(checkout: Path, environment: Make) -> None:
    source = checkout / "plugins" / "a" / "src" / "c" / "sum.c"
    source.parent.mkdir(parents=True)
    source.write_text("int a;\n")
    environment().setup()
    source.write_text("int b;\n")
    assert environment().problems() == [], "nothing compiles it"
    (checkout / "plugins" / "a" / "hatch_build.py").write_text("")
    environment().setup()
    assert environment().problems() == []
    source.write_text("int a;\n")
    assert len(environment().problems()) == 1


def test_a_moved_checkout_sets_up_again(checkout: Path, environment: Make) -> None:
    environment().setup()
    moved = checkout.rename(checkout.with_name("elsewhere"))
    assert Environment(Workspace.read(moved), moved / ".venv", ("dev",)).problems()


def test_environment_variable_names_another_torch(
    checkout: Path, environment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment().setup()
    calls(checkout)
    monkeypatch.setenv("PEGBOARD_TORCH", "2.11.0")
    environment().setup()
    assert all("torch==2.11.0" in call for call in calls(checkout))


def test_entry_points_that_are_stale_are_named(checkout: Path, environment: Make) -> None:
    environment().setup()
    (points,) = environment().site_packages.glob("pegboard_a-*/entry_points.txt")
    points.write_text("[pegboard.logger]\na = pegboard_a.plugin:SPEC\n")
    lines = environment().problems()
    assert len(lines) == 2
    assert "entry point ('pegboard.logger', 'A', 'pegboard_a.plugin:SPEC') is not installed" in lines[0]
    assert "is installed but not in pyproject.toml" in lines[1]


def test_a_member_that_left_is_uninstalled(checkout: Path, environment: Make) -> None:
    environment().setup()
    calls(checkout)
    (checkout / "plugins" / "b" / "pyproject.toml").unlink()
    environment().setup()
    assert calls(checkout)[0] == ["uninstall", "-y", "pegboard-b"]
    assert environment().problems() == []


def test_a_failed_setup_is_not_taken_for_done(checkout: Path, environment: Make) -> None:
    fail(checkout, "ERROR: No space left on device")
    with pytest.raises(DevError, match="free some disk space") as caught:
        environment().setup()
    assert "No space left on device" in str(caught.value)
    assert str(environment().log) in str(caught.value)
    assert environment().problems() == [".venv was not set up by dev.py, or not to the end"]
    environment().setup()
    assert environment().problems() == []


def test_network_is_tried_again(checkout: Path, environment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    fail(checkout, "ReadTimeoutError: Read timed out.", "ERROR: Connection broken: IncompleteRead")
    environment().setup()
    assert len(calls(checkout)) == 4
    fail(checkout, *["Max retries exceeded", "ERROR: No matching distribution found; Could not fetch URL"] * 2)
    with pytest.raises(DevError, match="reach the package index"):
        environment().setup(force=True)
    assert len(calls(checkout)) == 3


def test_another_failure_is_not_tried_again(checkout: Path, environment: Make) -> None:
    fail(checkout, "ERROR: ResolutionImpossible")
    with pytest.raises(DevError, match=r"a requirement and constraints\.txt disagree"):
        environment().setup()
    assert len(calls(checkout)) == 1


def test_an_optional_member_may_fail(checkout: Path, environment: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkout / "plugins" / "b" / "pyproject.toml"
    path.write_text(path.read_text() + "[tool.pegboard]\noptional = true\n")
    environment().setup()
    assert calls(checkout)[-1][-2:] == ["-e", str(path.parent)]
    for line in environment().site_packages.glob("pegboard_b-*/*"):
        line.unlink()
    (environment().site_packages / "pegboard_b-0.1.0.dist-info").rmdir()
    environment().stamp.write_text(json.dumps({"key": environment().key(), "skipped": ["pegboard-b"]}))
    assert environment().problems() == []


def test_a_python_that_is_too_old_is_refused(checkout: Path, environment: Make) -> None:
    replace(checkout / ".venv" / "pyvenv.cfg", "3.12.1", "3.10.9")
    with pytest.raises(DevError, match=r"has Python 3\.10\.9, 3\.11 to 3\.13 are supported"):
        environment().setup()
    assert calls(checkout) == []


def test_environment_is_made_with_the_running_python(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    made = Environment(Workspace.read(tmp_path), tmp_path / ".venv", ())
    assert made.version == ""
    made._create()
    assert made.python.exists()
    assert made.version == ".".join(map(str, sys.version_info[:3]))
    assert made.site_packages.is_dir()
