"""What `peg plugins new` refuses, and what it writes."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard.errors import ConfigError
from pegboard_sdk.peg import Said
from pegboard_sdk.scaffold import write
from pegboard_sdk.scaffold.names import KINDS, choose_names
from pegboard_sdk.scaffold.write import render, write_package


@pytest.mark.parametrize("kind", KINDS)
def test_every_template_is_filled_in(kind: str) -> None:
    texts = dict(render(choose_names("acme-lion", kind)))
    assert {"pyproject.toml", "README.md", "src/pegboard_acme_lion/plugin.py", "tests/test_conformance.py"} <= set(
        texts
    )
    for path, text in texts.items():
        assert "${" not in text and "__package__" not in path
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["entry-points"] == {f"pegboard.{kind}": {"acme-lion": "pegboard_acme_lion.plugin:SPEC"}}


def test_class_names_do_not_stutter() -> None:
    assert choose_names("acme-lion", "logger").class_name == "AcmeLionLogger"
    assert choose_names("acme_logger", "logger").class_name == "AcmeLogger"
    assert choose_names("acme", "model").class_name == "AcmeFamily"


def test_new_writes_a_folder_and_says_how_to_try_it(peg: Callable[..., Said], tmp_path: Path) -> None:
    said = peg("plugins", "new", "acme", "--kind", "logger", "--dest", str(tmp_path), "--dist", "lion-thing")
    assert said.status == 0, said.err
    assert str(tmp_path / "lion-thing") in said.out and "pip install -e" in said.out
    assert (tmp_path / "lion-thing/src/lion_thing/logger.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["lion-thing"]


@pytest.mark.parametrize(
    "name", ["", "Acme", "1acme", "acme--x", "acme-", "../acme", "a.b", "acme x", "x" * 61, "löwe"]
)
def test_bad_names_are_refused(peg: Callable[..., Said], tmp_path: Path, name: str) -> None:
    for arguments in ([name], ["acme", "--dist", name]):
        said = peg("plugins", "new", *arguments, "--kind", "logger", "--dest", str(tmp_path))
        assert said.status == 2 and "cannot be the name" in said.err and "fix:" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["acme", "--kind", "loger"], "did you mean 'logger'"),
        (["acme", "--kind", "engine"], "no template for the kind 'engine'"),
        (["jsonl", "--kind", "logger", "--dist", "lion-thing"], "pegboard-jsonl offers logger 'jsonl' already"),
        (["lion", "--kind", "logger", "--dist", "pegboard-jsonl"], "the distribution pegboard-jsonl is installed"),
        (["lion", "--kind", "logger", "--dist", "torch"], "there is a package 'torch'"),
        (["lion", "--kind", "logger", "--dist", "lambda"], "a word of Python's own"),
    ],
)
def test_what_cannot_be_is_refused(
    peg: Callable[..., Said], tmp_path: Path, arguments: list[str], message: str
) -> None:
    said = peg("plugins", "new", *arguments, "--dest", str(tmp_path))
    assert said.status == 2 and message in said.err and "fix:" in said.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    names = choose_names("acme", "logger")
    (tmp_path / "pegboard-acme").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        write_package(names, tmp_path)
    (tmp_path / "pegboard-acme").rmdir()
    (tmp_path / "pegboard-acme").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists"):
        write_package(names, tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        write_package(names, tmp_path / "absent")


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(names: object) -> object:
        yield "a/b.py", "text"
        raise OSError("disk full")

    monkeypatch.setattr(write, "render", broken)
    with pytest.raises(OSError, match="disk full"):
        write_package(choose_names("acme", "logger"), tmp_path)
    assert list(tmp_path.iterdir()) == []
