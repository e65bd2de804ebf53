from __future__ import annotations

from pathlib import Path

import pytest

from devtools.workspace import DevError, Workspace, normalise, requirement_name


def test_members_are_found_by_folder_and_sorted(checkout: Path) -> None:
    (checkout / "plugins" / "notes").mkdir()
    (checkout / "plugins" / "tool").mkdir()
    (checkout / "plugins" / "tool" / "pyproject.toml").write_text("[tool.other]\n")
    names = [member.name for member in Workspace.read(checkout).members]
    assert names == ["pegboard", "pegboard-a", "pegboard-b"]


def test_two_members_of_one_name_are_refused(checkout: Path) -> None:
    path = checkout / "plugins" / "b" / "pyproject.toml"
    path.write_text(path.read_text().replace("pegboard-b", "Pegboard_A"))
    with pytest.raises(DevError, match=r"two members are named pegboard-a: .*plugins.a and .*plugins.b"):
        Workspace.read(checkout)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[project\n", "not valid TOML"), ('[project]\nversion = "1"\n', "has no name")],
)
def test_broken_member_is_named(checkout: Path, text: str, said: str) -> None:
    (checkout / "core" / "pyproject.toml").write_text(text)
    with pytest.raises(DevError, match=rf"core.pyproject\.toml.*{said}"):
        Workspace.read(checkout)


def groups(root: Path, text: str) -> Workspace:
    (root / "pyproject.toml").write_text(f"[dependency-groups]\n{text}")
    return Workspace.read(root)


def test_groups_include_groups_and_name_each_requirement_once(tmp_path: Path) -> None:
    workspace = groups(
        tmp_path,
        'Test_All = ["pytest>=8", {include-group = "Build.Tools"}]\nbuild-tools = ["hatchling"]\n'
        'dev = [{include-group = "test-all"}, "hatchling", {include-group = "build_tools"}, "ruff"]\n',
    )
    assert workspace.group("dev") == ["pytest>=8", "hatchling", "ruff"]
    assert workspace.group("TEST.ALL") == ["pytest>=8", "hatchling"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a = ["x"]', "no dependency group 'dev' in pyproject.toml; there are: a"),
        ('dev = [{include-group = "a"}]\na = [{include-group = "dev"}]', "dev -> a -> dev"),
        ('dev = [{include = "a"}]', "expected a string or {include-group"),
        ("dev = [1]", "holds 1"),
        ('dev = [{include-group = "gone"}]', "no dependency group 'gone'"),
    ],
)
def test_broken_groups_are_explained(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DevError) as caught:
        groups(tmp_path, text).group("dev")
    assert said in str(caught.value)


def test_closure_follows_requirements_in_any_spelling(checkout: Path) -> None:
    workspace = Workspace.read(checkout)
    members = {member.name: member for member in workspace.members}
    assert {m.name for m in workspace.closure(members["pegboard-b"])} == {"pegboard-b", "pegboard-a", "pegboard"}
    assert [m.name for m in workspace.closure(members["pegboard"])] == ["pegboard"]


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("numpy>=1.26", "numpy"),
        (" Jinja2 ~= 3.1", "jinja2"),
        ("a.b_c[x,y]; python_version < '3'", "a-b-c"),
        ("torch @ file:///x", "torch"),
    ],
)
def test_requirement_name(requirement: str, name: str) -> None:
    assert requirement_name(requirement) == name == normalise(name)


def test_requirement_without_a_name_is_refused() -> None:
    with pytest.raises(DevError, match=r"'>=1\.0' is not a requirement"):
        requirement_name(">=1.0")
