from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pegboard_trainer.git import git_state


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    # Whatever the user has set, such as signatures, does not matter here.
    own = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *name, *arguments], cwd=folder, env=own, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_branch_and_changed_files_are_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "-b", "main")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new.txt").write_text("untracked files are no change\n")
    assert git_state(tmp_path) == {"commit": commit, "branch": "main", "changed": []}
    (tmp_path / "a.py").write_text("2\n")
    git(tmp_path, "checkout", "--detach")
    assert git_state(tmp_path) == {"commit": commit, "branch": None, "changed": ["M a.py"]}


def test_outside_of_a_checkout_and_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_state(Path.cwd()) is None
