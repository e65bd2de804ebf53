"""`peg config`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pegboard.config import parse_config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_list(bakery, peg) -> None:
    said = peg("config", "list")
    assert said.out.splitlines() == ["bake  default  The usual", "bake  small"]
    assert peg("config", "list", "bake").out == said.out


def test_list_passes_by_recipes_that_fail(bakery, peg) -> None:
    bakery.add("bad-peg", {("recipe", "bad"): "bad_recipe:S"}, {"bad_recipe": "1/0"})
    said = peg("config", "list")
    assert said.status == 0
    assert "bake  small" in said.out
    assert "bad: recipe 'bad' of bad-peg failed" in said.err
    assert peg("config", "list", "bad").status == 2


def test_show_before_everything_is_given(bakery, peg) -> None:
    said = peg("config", "show", "bake", "--config", "small", "output=o")
    assert said.status == 0
    assert parse_config(said.out, "x") == {
        "output": "o",
        "model": {"path": "???", "dtype": "bfloat16"},
        "optimizer": {"use": "stepper", "lr": 0.5},
        "count": 2,
        "loggers": ["plain"],
        "name": "small-${count}",
    }
    assert "still to be given" in said.err
    assert said.err.rstrip().endswith("model.path")


def test_show_with_all_defaults(bakery, peg) -> None:
    said = peg("config", "show", "bake", "--config", "small", "output=o", "model=m")
    shown = parse_config(said.out, "x")
    assert shown["optimizer"] == {"use": "stepper", "lr": 0.5, "betas": [0.9, 0.999]}
    assert shown["name"] == "small-2"


def test_validate(bakery, peg) -> None:
    said = peg("config", "validate", "bake", "output=o", "model=m")
    assert (said.status, said.out) == (0, "bake: default is valid\n")
    said = peg("config", "validate", "bake", "output=o", "model=m", "cuont=1")
    assert said.status == 2
    assert "cuont: unknown key (did you mean 'count'?)" in said.err
    assert not Path("o").exists()
    assert "bake_run.run" not in bakery.imported()


def test_copy_and_run(bakery, peg, here: Path) -> None:
    said = peg("config", "copy", "bake", "small")
    assert said.out == "bake-small.yaml: run it with `peg run bake --config bake-small.yaml`\n"
    assert Path("bake-small.yaml").read_text() == (bakery.folder / "bake_door/configs/small.yaml").read_text()
    assert peg("run", "bake", "--config", "bake-small.yaml", "output=o", "model=m").status == 0
    (here / "sub").mkdir()
    assert peg("config", "copy", "bake", "default", "sub").out.startswith("sub/bake-default.yaml")
    assert peg("config", "copy", "bake", "default", "mine.yaml").out.startswith("mine.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("copy", "bake", "small", "taken.yaml"), "taken.yaml exists"),
        (("copy", "bake", "small", "no/such/folder.yaml"), "the folder no/such does not exist"),
        (("copy", "bake", "smal"), "the recipe has no config 'smal' (did you mean 'small'?)"),
        (("copy", "baek", "small"), "no installed plugin offers recipe 'baek' (did you mean 'bake'?)"),
        (("show", "baek"), "did you mean 'bake'?"),
        (("show", "bake", "nonsense"), "'nonsense' is no override"),
        (("list", "baek"), "did you mean 'bake'?"),
        (("vlidate",), "peg config has no command 'vlidate' (did you mean 'validate'?)"),
    ],
)
def test_mistakes(bakery, peg, arguments: tuple[str, ...], message: str) -> None:
    Path("taken.yaml").write_text("kept")
    said = peg("config", *arguments)
    assert said.status == 2
    assert message in said.err
    assert "\n  fix: " in said.err
    assert Path("taken.yaml").read_text() == "kept"
