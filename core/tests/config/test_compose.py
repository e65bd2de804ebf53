"""Config files: finding them, `extends`, and where a value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard.config.compose import Composed, compose, list_configs
from pegboard.config.overrides import merge
from pegboard.config.text import MAX_BYTES, dump_tree
from pegboard.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configs of a recipe; the working directory lies beside it."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(folder / "default.yaml", {"a": 1, "batch": {"size": 4, "pack": True}, "loggers": ["one"]})
    write(folder / "child.yaml", {"extends": "default", "batch": {"size": 8}, "b": 2})
    write(folder / "grandchild.yaml", {"extends": "child", "b": 3})
    return folder


def write(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(dump_tree(tree), encoding="utf-8")
    return path


def test_names(folder: Path) -> None:
    assert list(list_configs(folder)) == ["child", "default", "grandchild"]
    assert list_configs(folder / "none") == {}
    assert compose(folder).tree == {"a": 1, "batch": {"size": 4, "pack": True}, "loggers": ["one"]}
    assert compose(folder, "child").tree == {
        "a": 1,
        "batch": {"size": 8, "pack": True},
        "loggers": ["one"],
        "b": 2,
    }


def test_a_chain_with_overrides(folder: Path) -> None:
    composed = compose(folder, "grandchild", ["b=4", "~loggers"])
    assert composed.tree == {"a": 1, "batch": {"size": 8, "pack": True}, "b": 4}


def test_every_value_has_an_origin(folder: Path) -> None:
    composed = compose(folder, "grandchild", ["batch.pack=false"])
    assert composed.origin(["a"]) == str(folder / "default.yaml")
    assert composed.origin(["batch", "size"]) == str(folder / "child.yaml")
    assert composed.origin(["b"]) == str(folder / "grandchild.yaml")
    assert composed.origin(["batch", "pack"]) == "batch.pack=false"
    assert composed.origin(["loggers", 0]) == str(folder / "default.yaml")
    assert composed.origin(["loggers", 5]) == str(folder / "default.yaml")
    assert composed.origin(["nothing"]) == ""


def test_files_extend_names_and_files_beside_them(folder: Path) -> None:
    here = Path.cwd()
    write(here / "base.yaml", {"extends": "child", "c": 1})
    mine = write(here / "mine.yaml", {"extends": ["default", "./base.yaml"], "c": 2})
    elsewhere = folder.parent
    for name in ("mine.yaml", str(mine), f"../{here.name}/mine.yaml"):
        tree = compose(folder, name).tree
        assert (tree["a"], tree["b"], tree["c"], tree["batch"]["size"]) == (1, 2, 2, 8), elsewhere


def test_later_parents_win(folder: Path) -> None:
    write(Path("one.yaml"), {"x": 1, "y": 1})
    write(Path("two.yaml"), {"x": 2})
    write(Path("both.yaml"), {"extends": ["one.yaml", "two.yaml"]})
    assert compose(folder, "both.yaml").tree == {"x": 2, "y": 1}


def test_a_name_of_the_recipe_wins_over_a_file(folder: Path) -> None:
    write(Path("child"), {"z": 1})
    assert "z" not in compose(folder, "child").tree
    assert compose(folder, "./child").tree == {"z": 1}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers() | st.none(), max_size=3), min_size=1, max_size=4))
def test_a_chain_is_one_merge_after_the_other(tmp_path_factory, trees: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("chain")
    expected: dict[str, Any] = {}
    for number, tree in enumerate(trees):
        parent = {"extends": f"c{number - 1}"} if number else {}
        write(folder / f"c{number}.yaml", {**parent, **tree})
        expected = merge(expected, tree)
    composed = compose(folder, f"c{len(trees) - 1}")
    assert composed.tree == expected
    for key in expected:
        last = max(number for number, tree in enumerate(trees) if key in tree)
        assert composed.origin([key]) == str(folder / f"c{last}.yaml")


def test_circles_are_named(folder: Path) -> None:
    write(folder / "x.yaml", {"extends": "y"})
    write(folder / "y.yaml", {"extends": "x"})
    write(folder / "self.yaml", {"extends": "self"})
    with pytest.raises(ConfigError, match="extend each other in a circle") as caught:
        compose(folder, "x")
    assert [Path(part).name for part in caught.value.message.partition(": ")[2].split(" -> ")] == [
        "x.yaml",
        "y.yaml",
        "x.yaml",
    ]
    with pytest.raises(ConfigError, match="circle"):
        compose(folder, "self")


def test_two_ways_to_one_parent_are_no_circle(folder: Path) -> None:
    write(folder / "left.yaml", {"extends": "default", "l": 1})
    write(folder / "right.yaml", {"extends": "default", "r": 1})
    write(folder / "both.yaml", {"extends": ["left", "right"]})
    assert compose(folder, "both").tree.keys() >= {"a", "l", "r"}


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("chlid", "the recipe has no config 'chlid' (did you mean 'child'?)", "default"),
        ("nothing.yaml", "there is no config file", "child, default, grandchild"),
        ("no/folder", "there is no config file", "child, default, grandchild"),
        (".", "the recipe has no config '.'", "default"),
    ],
)
def test_configs_that_are_not_there(folder: Path, name: str, message: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(folder, name)
    assert message in caught.value.message
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"extends: 3\n", "bad.yaml: extends holds 3"),
        (b"extends: [default, 3]\n", "bad.yaml: extends holds 3"),
        (b"extends: defualt\n", "did you mean 'default'?"),
        (b"extends: {a: 1}\n", "extends holds {'a': 1}"),
        (b"\xff\xfea", "bad.yaml is no UTF-8 text (byte 0)"),
        (b"a: [1\n", "bad.yaml, line 2"),
        (b"#" * (MAX_BYTES + 1), "bad.yaml is larger than"),
    ],
)
def test_files_that_are_refused(folder: Path, text: bytes, message: str) -> None:
    Path("bad.yaml").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        compose(folder, "bad.yaml")
    assert message in caught.value.message
    assert "bad.yaml" in caught.value.message


def test_a_mark_of_byte_order_is_no_matter(folder: Path) -> None:
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert compose(folder, "bom.yaml") == Composed({"a": 1}, ((str(Path.cwd() / "bom.yaml"), {"a": 1}),))
