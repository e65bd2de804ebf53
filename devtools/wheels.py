"""Wheels: build one of every member, and try each alone in a fresh environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from devtools.environment import Environment, run_pip
from devtools.installed import distributions
from devtools.workspace import DevError, Member, Workspace, normalise, requirement_name

CHECK = Path(__file__).with_name("smoke_check.py")


def build(environment: Environment) -> dict[str, Path]:
    """Build a wheel of every member into dist/ and return them by distribution name. Raises DevError when one fails.

    An optional member that does not build is left out, and said so.
    """
    workspace = environment.workspace
    folder = workspace.root / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _pip_wheel(environment, folder, [member for member in workspace.members if not member.optional])
    for member in workspace.members:
        if member.optional:
            try:
                _pip_wheel(environment, folder, [member])
            except DevError as error:
                print(f"  {member.name} is optional and left out:\n{error}", flush=True)
    found = {normalise(path.name.split("-")[0]): path for path in folder.glob("*.whl")}
    for member in workspace.members:
        if member.name in found and (lost := missing_files(member, found[member.name])):
            raise DevError(f"{found[member.name].name} lacks files of {member.folder}/src: {', '.join(lost)}")
    return found


def missing_files(member: Member, wheel: Path) -> list[str]:
    """Return the files below the member's src/ that its wheel does not hold."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    source = member.folder / "src"
    files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = (path.relative_to(source).as_posix() for path in files)
    compiled = (".pyc", ".so", ".pyd", ".o")
    return sorted(name for name in names if name not in packed and not name.endswith(compiled))


def smoke(environment: Environment, wheels: Mapping[str, Path]) -> list[str]:
    """Install each wheel with the wheels it requires into an environment of its own and check it there.

    One torch, with its own requirements, is shared; everything else comes from the wheels' metadata, so that an
    undeclared requirement shows. Returns one text for each wheel that failed.
    """
    work = environment.workspace.root / "build" / "smoke"
    shutil.rmtree(work, ignore_errors=True)
    shared = work / "torch"
    shared.mkdir(parents=True)
    link_closure("torch", environment.site_packages, shared)
    failures = []
    for member in environment.workspace.members:
        if member.name not in wheels:
            continue
        start = time.monotonic()
        problem = _smoke_one(environment, member, wheels, work / member.name, shared)
        print(f"  {member.name}: {'FAILED' if problem else 'ok'} ({time.monotonic() - start:.1f} s)", flush=True)
        if problem:
            print(problem, flush=True)
            failures.append(f"{member.name}:\n{problem}")
        shutil.rmtree(work / member.name, ignore_errors=True)
    return failures


def link_closure(name: str, site_packages: Path, folder: Path) -> list[str]:
    """Link a distribution and everything that it requires from `site_packages` into `folder`; return their names."""
    available = distributions(site_packages)
    found: list[str] = []
    waiting = [normalise(name)]
    while waiting:
        current = waiting.pop()
        if current in found or current not in available:
            continue
        found.append(current)
        dist = available[current]
        for top in {file.parts[0] for file in dist.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists() and (site_packages / top).exists():
                link.symlink_to((site_packages / top).resolve())
        waiting.extend(requirement_name(text) for text in dist.requires or [] if not re.search(r";.*\bextra\b", text))
    return sorted(found)


def _pip_wheel(environment: Environment, folder: Path, members: list[Member]) -> None:
    folders = [str(member.folder) for member in members]
    arguments = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), *folders]
    run_pip(environment.python, arguments, environment.log)


def _smoke_one(env: Environment, member: Member, wheels: Mapping[str, Path], path: Path, shared: Path) -> str | None:
    workspace = env.workspace
    closure = workspace.closure(member)
    absent = [other.name for other in closure if other.name not in wheels]
    if absent:
        return f"requires {', '.join(absent)}, whose wheel did not build"
    subprocess.run([str(env.python), "-m", "venv", "--without-pip", str(path)], check=True)
    fresh = Environment(workspace, path, ())
    (fresh.site_packages / "shared-torch.pth").write_text(f"{shared}\n", encoding="utf-8")
    constraints = str(workspace.root / "constraints.txt")
    files = [str(wheels[other.name]) for other in closure] + [line for other in closure for line in other.tried_with]
    log = path / "pip.log"
    try:
        run_pip(env.python, ["--python", str(fresh.python), "install", "-c", constraints, *files], log)
        run_pip(env.python, ["--python", str(fresh.python), "check"], log)
    except DevError as error:
        return str(error)
    names = [other.name for other in closure]
    commands = [[str(fresh.python), "-I", str(CHECK), member.name, *names]]
    if "pegboard" in names:
        commands.append([str(fresh.python), "-I", "-m", "pegboard", "plugins", "check"])
    for command in commands:
        done = subprocess.run(
            command, cwd=path, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            return f"`{' '.join(command[2:])}` exited with {done.returncode}\n{(done.stdout + done.stderr).strip()[-3000:]}"
    return None


def installed_version(site_packages: Path, name: str) -> str | None:
    """Return the installed version of a distribution, None when it is not installed."""
    dist: metadata.Distribution | None = distributions(site_packages).get(normalise(name))
    return dist.version if dist else None


def run(command: list[str], workspace: Workspace, extra: Mapping[str, str] | None = None) -> int:
    """Run a command in the checkout's root, its output unchanged, and return its exit status."""
    sys.stdout.flush()
    return subprocess.run(command, cwd=workspace.root, env=os.environ | dict(extra or {})).returncode
