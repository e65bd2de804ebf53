from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from devtools.installed import all_disagreements, disagreements, distributions, normal_requirement
from devtools.workspace import Member, Workspace


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Jinja2 >= 3.1 , < 4", "jinja2<4,>=3.1"),
        ("a_b (>=1)", "A.B>=1"),
        ("a[x, y]>1", "a[x,y] >1"),
        ("a; python_version < '3.12'", 'a ;python_version<"3.12"'),
    ],
)
def test_requirements_that_mean_the_same_are_equal(left: str, right: str) -> None:
    assert normal_requirement(left) == normal_requirement(right)


@pytest.mark.parametrize(("left", "right"), [("a>=1", "a>1"), ("a", "a[x]"), ("a", 'a;python_version<"3"'), ("a", "b")])
def test_requirements_that_differ_stay_different(left: str, right: str) -> None:
    assert normal_requirement(left) != normal_requirement(right)


def install(site: Path, folder: Path, name: str = "pegboard-a", text: str = "Summary: A\n") -> metadata.Distribution:
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 0.1.0\n{text}")
    record = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(record))
    return distributions(site)[name]


def member(folder: Path, **project: object) -> Member:
    return Member(folder, {"name": "pegboard-a", "version": "0.1.0", "description": "A", **project})


def test_an_installation_that_agrees(tmp_path: Path) -> None:
    text = 'Summary: A\nRequires-Dist: numpy>=1.26\nRequires-Dist: rich>=13; extra == "pretty"\n'
    dist = install(tmp_path / "site", tmp_path / "my plugin", text=text)
    assert disagreements(member(tmp_path / "my plugin", dependencies=["numpy >= 1.26"]), dist) == []


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ({"version": "0.2.0"}, "Version is '0.1.0', pyproject.toml says '0.2.0'"),
        ({"description": "B"}, "Summary is 'A', pyproject.toml says 'B'"),
        ({"dependencies": ["numpy"]}, "requirement numpy is not installed"),
        ({"scripts": {"peg": "a:b"}}, "entry point ('console_scripts', 'peg', 'a:b') is not installed"),
        ({"entry-points": {"pegboard.logger": {"X": "a:b"}}}, "entry point ('pegboard.logger', 'X', 'a:b')"),
    ],
)
def test_each_difference_is_named(tmp_path: Path, project: dict[str, object], said: str) -> None:
    dist = install(tmp_path / "site", tmp_path)
    (line,) = disagreements(member(tmp_path, **project), dist)
    assert said in line


def test_another_checkout_or_a_wheel_is_named(tmp_path: Path) -> None:
    dist = install(tmp_path / "site", tmp_path / "other")
    assert "is installed from" in disagreements(member(tmp_path), dist)[0]
    (tmp_path / "site" / "pegboard_a-0.1.0.dist-info" / "direct_url.json").unlink()
    assert "installed from a wheel" in disagreements(member(tmp_path), dist)[0]
    assert disagreements(member(tmp_path), None) == ["pegboard-a is not installed"]


def test_orphans_are_members_of_this_checkout_that_are_gone(tmp_path: Path) -> None:
    site, root = tmp_path / "site", tmp_path / "checkout"
    install(site, root / "plugins" / "gone", "pegboard-gone")
    install(site, tmp_path / "elsewhere" / "mine", "mine")
    workspace = Workspace(root, {}, ())
    assert all_disagreements(workspace, site) == ["pegboard-gone is installed but no longer a member"]
