"""A Chromium is found, installed by root where apt-get is, and else asked for in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from devtools import browser
from devtools.environment import Environment
from devtools.workspace import DevError

Make = Callable[[], Environment]

APT = """#!/bin/sh
echo "$@" >> {folder}/asked
if [ -e {folder}/fails ]; then echo "E: no network"; exit 100; fi
if [ "$1" = install ]; then printf '#!/bin/sh\\n' > {folder}/chromium; chmod +x {folder}/chromium; fi
"""


@pytest.fixture
def path(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole path of programs, with a shell."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "chmod"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    monkeypatch.setattr(browser, "PAUSE", 0)
    with (checkout / "pyproject.toml").open("a") as file:
        file.write('browser = ["driver>=1.50"]\n')
    return folder


def program(path: Path, text: str = "#!/bin/sh\n") -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_one_that_is_there_is_taken(path: Path, environment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    other = program(path / "other")
    chromium = program(path / "chromium-browser")
    assert browser.ready_browser(environment()) == chromium
    assert '"driver>=1.50"' in (environment().path / "calls.jsonl").read_text()
    monkeypatch.setenv(browser.VARIABLE, other)
    assert browser.find_chromium() == other


def test_root_installs_it(path: Path, environment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(path / "apt-get", APT.format(folder=path))
    assert browser.ready_browser(environment()) == str(path / "chromium")
    assert (path / "asked").read_text().splitlines() == ["update", " ".join(browser.APT[1:])]


def test_a_failure_is_tried_again_and_told(path: Path, environment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(path / "apt-get", APT.format(folder=path))
    (path / "fails").touch()
    with pytest.raises(
        DevError, match=r"(?s)`apt-get update` failed:\n    E: no network\nWhat to do: install Chromium"
    ):
        browser.ready_browser(environment())
    assert (path / "asked").read_text().splitlines() == ["update", "update"]


@pytest.mark.parametrize("user", [0, 1000])
def test_others_are_told_what_to_do(path: Path, environment: Make, user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if user:
        program(path / "apt-get", APT.format(folder=path))
    with pytest.raises(DevError, match=r"there is none here\nWhat to do: install Chromium \(on Debian"):
        browser.ready_browser(environment())
    assert not (path / "asked").exists()
