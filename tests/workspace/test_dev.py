from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dev

ROOT = Path(dev.__file__).parent
COMMANDS = "setup demo test test-slow lint types wheels smoke new-plugin fuzz known clean".split()


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(ROOT / "dev.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_without_a_command_it_lists_them_and_needs_nothing_installed() -> None:
    # -S: no site-packages, so that any import beyond the standard library would fail.
    code = "import sys; sys.path.insert(0, sys.argv[1]); import dev; sys.exit(dev.main([]))"
    done = subprocess.run([sys.executable, "-S", "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^    ([a-z-]+)", done.stdout, re.MULTILINE)
    assert listed == COMMANDS


def test_makefile_has_every_command() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony.split() == ["help", *COMMANDS]
    for name in COMMANDS:
        done = subprocess.run(
            ["make", "-n", name, "NAME=x", "KIND=logger", "ARGS=--odd"], capture_output=True, text=True, cwd=ROOT
        )
        assert f"dev.py {name}" in done.stdout and "--odd" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["NAME=x", "KIND=logger"])
def test_new_plugin_says_what_is_missing(name: str) -> None:
    done = subprocess.run(["make", "-n", "new-plugin", name], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "make new-plugin NAME=acme KIND=logger" in done.stderr


def test_unknown_arguments_are_refused_where_nothing_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dev.main(["setup", "--forse"])
    assert "setup does not take --forse" in capsys.readouterr().err


def test_unknown_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main(["test-slow", "--only", "peers,whels"]) == 2
    assert capsys.readouterr().err == "error: no stage named whels; there are: wheels, slow, peers, demo, fuzz\n"


def test_an_old_python_is_told_in_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.version_info = (3, 10, 0); sys.argv = ['dev.py'];"
        f"exec(compile(open({str(ROOT / 'dev.py')!r}).read(), 'dev.py', 'exec'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python 3.11 to 3.13 is needed")


def test_ci_runs_both_test_commands() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    commands = [line for line in path.read_text().splitlines() if line.startswith("make")]
    assert commands == ["make test", "make test-slow"]
