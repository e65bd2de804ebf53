"""A new package of every kind builds, installs, is discovered, passes its own tests and the linter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pegboard_sdk.scaffold.names import KINDS

pytestmark = pytest.mark.slow


def run(*command: str, folder: Path, site: Path | None = None) -> str:
    """Run a module of this environment, over which `site` is layered, and return its output."""
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"}
    environment = {key: value for key, value in environment.items() if not key.startswith("PEGBOARD_")}
    if site is not None:
        environment = {**environment, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_new_package(kind: str, tmp_path: Path) -> None:
    name, site = f"acme-lion-{kind.replace('_', '-')}", tmp_path / "site"
    run("pegboard", "plugins", "new", name, "--kind", kind, "--dest", str(tmp_path), folder=tmp_path)
    package = tmp_path / f"pegboard-{name}"
    run("ruff", "check", ".", folder=package)
    run("pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".", folder=package)
    (wheel,) = tmp_path.glob("*.whl")
    run("pip", "install", "--no-deps", "--target", str(site), str(wheel), folder=tmp_path)
    listed = json.loads(run("pegboard", "plugins", "list", "--kind", kind, "--json", folder=tmp_path, site=site))
    (record,) = [record for record in listed if record["name"] == name]
    assert (record["dist"], record["status"]) == (f"pegboard-{name}", "ok")
    assert "ok" in run("pegboard", "plugins", "check", name, folder=tmp_path, site=site)
    summary = run("pytest", "-q", folder=package, site=site).splitlines()[-1]
    assert " passed" in summary and "failed" not in summary


def test_wheel_of_the_sdk_holds_the_templates(tmp_path: Path) -> None:
    sdk = Path(__file__).parents[2]
    run("pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(sdk), folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    source = sdk / "src"
    wanted = {str(path.relative_to(source)) for path in source.rglob("*.tmpl")}
    assert len(wanted) > 20
    with zipfile.ZipFile(wheel) as archive:
        assert wanted <= set(archive.namelist())
