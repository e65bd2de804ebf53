"""The state of the version control that a run is started in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

SECONDS = 10
"""git may wait for a slow network folder; a run must not."""


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch (None when detached) and changed files of the checkout around `folder`; None outside of one or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") or ""
    branch = _git(folder, "symbolic-ref", "--short", "--quiet", "HEAD")
    return {"commit": commit, "branch": branch, "changed": [line.strip() for line in changed.splitlines()]}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
