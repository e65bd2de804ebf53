"""`peg run`: a recipe gets its resolved config; a mistake stops before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pegboard.config import parse_config


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_written_config_re_runs_exactly(bakery, peg) -> None:
    said = peg("run", "bake", "--config", "small", "model=a=b", "output=one", "optimizer.lr=1e-3", "notes.x='\\${y}'")
    assert (said.status, said.err) == (0, "")
    assert Path("one/lr").read_text() == "0.001"
    text = Path("one/config.yaml").read_text(encoding="utf-8")
    again = peg("run", "bake", "--config", "one/config.yaml", "output=two")
    assert again.status == 0
    written = parse_config(Path("two/config.yaml").read_text(encoding="utf-8"), "x")
    assert {**written, "output": "one"} == parse_config(text, "x")


def test_plugins_disabled_in_a_config_are_not_imported(bakery, peg) -> None:
    bakery.add("watch-peg", {("hooks", "watch"): "watch_door:S"}, {"watch_door": "1/0"})
    assert peg("run", "bake", "model=m", "output=o", "plugins.disabled=[watch-peg]").status == 0
    assert "watch_door" not in bakery.imported()
    assert parse_config(Path("o/config.yaml").read_text(), "x")["plugins"] == {"disabled": ["watch-peg"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("baek",), "no installed plugin offers recipe 'baek' (did you mean 'bake'?)"),
        (("bake",), "bake: default: these keys need a value: output, model.path"),
        (("bake", "--config", "smal"), "the recipe has no config 'smal' (did you mean 'small'?)"),
        (("bake", "--config", "none.yaml"), "there is no config file"),
        (("bake", "model=m", "output=o", "optimizer.rl=1"), "optimizer.rl: unknown key; keys here: betas, lr"),
        (("bake", "model=m", "output=o", "count=many"), "count = 'many': expected a valid integer"),
        (("bake", "model=m", "output=o", "loggers=[wandy]"), "loggers.0: no installed plugin offers logger 'wandy'"),
        (("bake", "model=m", "output=o", "plugins.disabled=[bake]"), "recipe 'bake' of bake-peg is blocked"),
        (("bake", "model"), "'model' is no override"),
    ],
)
def test_a_mistake_is_one_error_with_its_fix(bakery, peg, here: Path, arguments: tuple[str, ...], message: str) -> None:
    said = peg("run", *arguments)
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n  fix: ") == 1
    assert "Traceback" not in said.err
    assert list(here.iterdir()) == []


def test_a_recipe_that_is_blocked_or_known_says_so(bakery, peg, monkeypatch) -> None:
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "bake-peg")
    said = peg("run", "bake")
    assert said.status == 2
    assert "recipe 'bake' of bake-peg is blocked" in said.err


def test_a_recipe_of_another_class_is_refused(site, peg) -> None:
    door = "from pegboard.plugins.spec import PluginSpec\nS = PluginSpec(kind='recipe', target='m:T')"
    site.add("odd-peg", {("recipe", "odd"): "odd_door:S"}, {"odd_door": door})
    said = peg("run", "odd")
    assert said.status == 2
    assert "the front door of recipe 'odd' is a PluginSpec" in said.err
