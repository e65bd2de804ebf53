"""A Chromium, and what drives it, for the tests of the server's page: found, or installed where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from devtools.environment import Environment
from devtools.installed import distributions
from devtools.workspace import DevError, requirement_name

VARIABLE = "PEGBOARD_CHROMIUM"
"""Names the program, where it is not one of NAMES on the path."""

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
APT = ("apt-get", "install", "--yes", "--no-install-recommends", "chromium")
PAUSE = 5.0
"""Seconds before the packages are asked for again, after the network failed."""

FIX = f"install Chromium (on Debian and Ubuntu, as root: {' '.join(APT)}), or name a program in {VARIABLE}"


def find_chromium() -> str | None:
    """Return the path of a Chromium or Chrome, None where there is none."""
    names = [name for name in (os.environ.get(VARIABLE), *NAMES) if name]
    return next((found for name in names if (found := shutil.which(name))), None)


def ready_browser(environment: Environment) -> str:
    """Install the group `browser` and a Chromium where they are missing; return the browser's path.

    Raises DevError where there is none and apt-get cannot be used.
    """
    available = distributions(environment.site_packages)
    requirements = environment.workspace.group("browser")
    missing = [text for text in requirements if requirement_name(text) not in available]
    if missing:
        environment.install("what drives a browser", missing)
    if (found := find_chromium()) is None:
        _install_chromium()
        found = find_chromium()
    if found is None:
        raise DevError(f"Chromium was installed, but is not on the path\nWhat to do: {FIX}.")
    return found


def _install_chromium() -> None:
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise DevError(f"the chat page is tested in Chromium, and there is none here\nWhat to do: {FIX}.")
    print("installing Chromium with apt-get ...", flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("apt-get", "update"), APT):
        for attempt in range(2):
            done = subprocess.run(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            if done.returncode == 0:
                break
            if attempt == 1:
                tail = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-6:])
                raise DevError(f"`{' '.join(command)}` failed:\n{tail}\nWhat to do: {FIX}.")
            time.sleep(PAUSE)
