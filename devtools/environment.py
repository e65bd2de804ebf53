"""A virtual environment of the workspace: made once, filled by pip, left alone while nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devtools import installed
from devtools.workspace import DevError, Member, Workspace

OLDEST, NEWEST = (3, 11), (3, 13)

NETWORK = (
    "Retrying (Retry(",
    "Could not fetch URL",
    "Failed to establish a new connection",
    "Max retries exceeded",
    "NameResolutionError",
    "Read timed out",
    "ReadTimeoutError",
    "IncompleteRead",
    "Connection broken",
    "ConnectionResetError",
    "RemoteDisconnected",
    "DO NOT MATCH THE HASHES",
    "Server Error:",
)
"""Signs in pip's output of a network that failed, or broke off in the middle of a file."""

PAUSES = (5.0, 20.0)
"""Seconds to wait before pip is tried again after the network failed."""

HINTS = (
    ("No space left", "free some disk space and run the same command again"),
    *((sign, "reach the package index: connect, or point pip at a local one (pip config)") for sign in NETWORK),
    ("No matching distribution", "this Python or platform has no such version: see `python dev.py setup --help`"),
    ("ResolutionImpossible", "a requirement and constraints.txt disagree: change one of them"),
    ("conflict", "a requirement and constraints.txt disagree: change one of them"),
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment at `path`, filled with every member and the dependency groups `groups`."""

    workspace: Workspace
    path: Path
    groups: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def version(self) -> str:
        """Version of its Python, such as "3.11.7", from pyvenv.cfg; empty when there is no environment."""
        try:
            lines = (self.path / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        except OSError:
            return ""
        pairs = (line.partition("=") for line in lines)
        values = {key.strip(): value.strip() for key, _, value in pairs}
        return values.get("version", values.get("version_info", ""))

    @property
    def site_packages(self) -> Path:
        """Folder that distributions are installed in."""
        if os.name == "nt":
            return self.path / "Lib" / "site-packages"
        return self.path / "lib" / f"python{'.'.join(self.version.split('.')[:2])}" / "site-packages"

    @property
    def stamp(self) -> Path:
        """File that tells what the last setup installed."""
        return self.path / "pegboard-setup.json"

    @property
    def log(self) -> Path:
        """File that holds what pip said."""
        return self.path / "pegboard-pip.log"

    def key(self) -> str:
        """Return a hash of everything that an installation follows from."""
        root = self.workspace.root
        parts = [str(root.resolve()), self.version, torch_requirement(self.workspace), *self.groups]
        digest = hashlib.sha256("\0".join(parts).encode())
        files = [root / "pyproject.toml", root / "constraints.txt", *(m.pyproject for m in self.workspace.members)]
        files += [source for member in self.workspace.members for source in member.compiled]
        for path in files:
            digest.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def problems(self) -> list[str]:
        """Return why a setup is needed, one line each; empty when the environment is as it should be."""
        if not self.python.exists():
            return [f"{self.path.name} does not exist"]
        try:
            record = json.loads(self.stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return [f"{self.path.name} was not set up by dev.py, or not to the end"]
        if record.get("key") != self.key():
            return ["a pyproject.toml, constraints.txt or Python changed since the last setup"]
        return installed.all_disagreements(self.workspace, self.site_packages, record.get("skipped", []))

    def setup(self, *, force: bool = False) -> None:
        """Make the environment if need be and install what changed. Raises DevError when a step fails."""
        reasons = ["asked for"] if force else self.problems()
        if not reasons:
            return
        print(f"setting up {self.path.name}: {reasons[0]}", flush=True)
        self._create()
        self.stamp.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        orphans = installed.orphans(self.workspace, installed.distributions(self.site_packages))
        if orphans:
            self._step("members that are gone", ["uninstall", "-y", *orphans])
        torch = torch_requirement(self.workspace)
        self.install(f"{torch} and build tools", [torch, *self.workspace.group("build")])
        requirements = [text for group in self.groups for text in self.workspace.group(group)]
        needed = [member for member in self.workspace.members if not member.optional]
        self.install(f"{len(needed)} members and their requirements", [torch, *_editable(needed), *requirements])
        skipped = [member.name for member in self.workspace.members if member.optional and not self._optional(member)]
        lines = installed.all_disagreements(self.workspace, self.site_packages, skipped)
        if lines:
            raise DevError("\n".join(["installed metadata differ from the pyproject.toml files:", *lines]))
        self.stamp.write_text(json.dumps({"key": self.key(), "skipped": skipped}, indent=1) + "\n", encoding="utf-8")

    def install(self, what: str, requirements: Sequence[str]) -> None:
        """Install requirements under constraints.txt in one pip call. Raises DevError with pip's last lines."""
        constraints = str(self.workspace.root / "constraints.txt")
        self._step(what, ["install", "--no-build-isolation", "-c", constraints, *requirements])

    def _optional(self, member: Member) -> bool:
        try:
            self.install(f"{member.name} (optional)", _editable([member]))
        except DevError as error:
            print(f"  {member.name} is optional and left out:\n{error}", flush=True)
            return False
        return True

    def _create(self) -> None:
        if self.python.exists():
            self._check_version()
            return
        major_minor = sys.version_info[:2]
        if not OLDEST <= major_minor <= NEWEST:
            raise DevError(
                f"Python {sys.version.split()[0]} is not supported, 3.11 to 3.13 are: make PYTHON=python3.12 setup"
            )
        command = [sys.executable, "-m", "venv", "--clear", str(self.path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0 or not self.python.exists():
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
            raise DevError(f"`{' '.join(command)}` failed:\n{tail}\nOn Debian and Ubuntu: apt install python3-venv")

    def _check_version(self) -> None:
        version = tuple(int(part) for part in self.version.split(".")[:2])
        if not OLDEST <= version <= NEWEST:
            raise DevError(
                f"{self.path} has Python {self.version}, 3.11 to 3.13 are supported: move it away and try again"
            )

    def _step(self, what: str, arguments: list[str]) -> None:
        print(f"  {what} ...", end="", flush=True)
        start = time.monotonic()
        try:
            run_pip(self.python, arguments, self.log)
        except DevError:
            print(" failed", flush=True)
            raise
        print(f" {time.monotonic() - start:.1f} s", flush=True)


def run_pip(python: Path, arguments: Sequence[str], log: Path) -> None:
    """Run pip quietly, its output appended to `log`; again after a pause when the network failed.

    Raises DevError with pip's last lines and what to do.
    """
    command = [str(python), "-m", "pip", *arguments]
    environ = {key: value for key, value in os.environ.items() if key not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    environ |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    for pause in (*PAUSES, None):
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
        if done.returncode == 0:
            return
        if pause is None or not any(sign in done.stdout for sign in NETWORK):
            raise DevError(explain(done.stdout, log))
        print(f" the network failed, again in {pause:.0f} s ...", end="", flush=True)
        time.sleep(pause)


def explain(output: str, log: Path) -> str:
    """Return the last lines of pip's output and what to do about them."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    advice = next((hint for sign, hint in HINTS if sign in output), "run the same command again, or read the whole log")
    return "\n".join(["pip failed:", *(f"    {line}" for line in lines[-12:]), f"What to do: {advice}.", f"Log: {log}"])


def torch_requirement(workspace: Workspace) -> str:
    """Return the torch to install: the version in the environment variable PEGBOARD_TORCH, or the tested one."""
    return f"torch=={os.environ.get('PEGBOARD_TORCH') or workspace.torch}"


def _editable(members: Sequence[Member]) -> list[str]:
    return [part for member in members for part in ("-e", str(member.folder))]
