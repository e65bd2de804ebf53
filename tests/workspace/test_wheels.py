from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from devtools import smoke_check
from devtools.wheels import CHECK, installed_version, link_closure, missing_files
from devtools.workspace import Member


def install(site: Path, name: str, files: dict[str, str], *metadata: str, entry_points: str = "") -> None:
    """Put a distribution into a site-packages folder, as pip would."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *metadata]) + "\n"
    files = {**files, f"{info}/METADATA": text, f"{info}/entry_points.txt": entry_points}
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


def test_missing_files_are_those_of_src_that_the_wheel_lacks(tmp_path: Path) -> None:
    package = tmp_path / "src" / "pegboard_a"
    (package / "configs").mkdir(parents=True)
    (package / "__pycache__").mkdir()
    for name in ("__init__.py", "configs/default.yaml", "py.typed", "__pycache__/x.py", "fast.so"):
        (package / name).write_text("")
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pegboard_a/__init__.py", "")
    member = Member(tmp_path, {"name": "pegboard-a"})
    assert missing_files(member, wheel) == ["pegboard_a/configs/default.yaml", "pegboard_a/py.typed"]


def test_link_closure_holds_what_metadata_requires_and_nothing_else(tmp_path: Path) -> None:
    site, shared = tmp_path / "site", tmp_path / "shared"
    shared.mkdir()
    extra = 'Requires-Dist: stranger; extra == "all"'
    install(site, "torch", {"torch/__init__.py": "", "functorch.py": ""}, "Requires-Dist: Sym_Py>=1", extra)
    install(site, "sym-py", {"sympy/__init__.py": ""}, "Requires-Dist: torch", "Requires-Dist: absent")
    install(site, "stranger", {"stranger.py": ""})
    assert link_closure("torch", site, shared) == ["sym-py", "torch"]
    tops = {path.name for path in shared.iterdir() if path.suffix != ".dist-info"}
    assert tops == {"torch", "functorch.py", "sympy"}
    assert installed_version(shared, "Sym.Py") == "1.0"
    assert installed_version(shared, "stranger") is None


def check(site: Path, name: str, *workspace: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys, runpy; sys.path.insert(0, {str(site)!r}); sys.argv = sys.argv[1:]; "
    code = path + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-I", "-S", "-c", code, str(CHECK), name, *workspace]
    return subprocess.run(command, capture_output=True, text=True)


PLUGIN = {
    "pegboard_a/__init__.py": "",
    "pegboard_a/plugin.py": "class Spec:\n    target = 'pegboard_a.thing:Thing'\n    schema = probe = None\nSPEC = Spec()\n",
    "pegboard_a/thing.py": "import helper\nimport json\nclass Thing: ...\n",
    "pegboard_a/templates/x.py": "this is no Python",
}
POINTS = "[pegboard.logger]\na = pegboard_a.plugin:SPEC\n"


def test_a_sound_distribution_passes(tmp_path: Path) -> None:
    install(tmp_path, "helper-dist", {"helper.py": ""})
    install(tmp_path, "pegboard-a", PLUGIN, "Requires-Dist: Helper_Dist>=1", entry_points=POINTS)
    done = check(tmp_path, "pegboard-a")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_a_workspace_requirement_declares_counts(tmp_path: Path) -> None:
    install(tmp_path, "helper-dist", {"helper.py": ""})
    install(tmp_path, "pegboard", {"pegboard.py": ""}, "Requires-Dist: helper-dist")
    install(tmp_path, "pegboard-a", PLUGIN, "Requires-Dist: pegboard", entry_points=POINTS)
    assert check(tmp_path, "pegboard-a", "pegboard").returncode == 0


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("thing.py", "import helper\n", "pegboard_a.thing, line 1: imports helper of helper-dist"),
        ("thing.py", "raise ValueError('boo')\n", "import pegboard_a.thing: ValueError: boo"),
        ("thing.py", "class Other: ...\n", "entry point pegboard.logger a"),
        ("plugin.py", "OTHER = 1\n", "entry point pegboard.logger a = pegboard_a.plugin:SPEC: AttributeError"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    install(tmp_path, "helper-dist", {"helper.py": ""})
    files = {**PLUGIN, "pegboard_a/thing.py": "class Thing: ...\n", f"pegboard_a/{file}": content}
    install(tmp_path, "pegboard-a", files, entry_points=POINTS)
    done = check(tmp_path, "pegboard-a")
    assert done.returncode == 1
    assert said in done.stdout


def test_guarded_imports_do_not_count() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n"
        "try:\n    import c\nexcept ImportError:\n    import d\n"
        "try:\n    import e\nexcept ValueError:\n    pass\n"
        "def f():\n    from g.h import i\n"
        "from . import j\n"
    )
    found = [name for name, _ in smoke_check.imports(ast.parse(source))]
    assert found == ["typing", "b", "d", "e", "g"]
