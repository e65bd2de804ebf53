"""From a recipe's config to the resolved one: references, validation by the recipe and its plugins, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pegboard.config import dump_config, load_config
from pegboard.config.compose import Composed
from pegboard.config.resolve import configs_folder, disabled_plugins, recipe_spec, resolve_references
from pegboard.errors import ConfigError, PluginError
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec, RecipeSpec

GIVEN = ("model=m", "output=o")


def load(*overrides: str, config: str | None = None) -> dict[str, Any]:
    return load_config(Registry.discover(), "bake", config, [*GIVEN, *overrides])


def refusal(*overrides: str, config: str | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, config=config)
    return caught.value


def test_a_config_is_completed_by_the_recipe_and_its_plugins(bakery) -> None:
    assert load(config="small") == {
        "name": "small-2",
        "output": "o",
        "count": 2,
        "share": None,
        "model": {"path": "m", "dtype": "bfloat16"},
        "data": None,
        "optimizer": {"use": "stepper", "lr": 0.5, "betas": [0.9, 0.999]},
        "loggers": [{"use": "plain"}],
        "notes": {},
    }
    assert "bake_run.run" not in bakery.imported()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("name=a: b=c # d",),
        ("name='\\${count}'",),
        ("notes={a: '1', b: 'no', c: 'x\\${y}'}", "share=1e-3"),
        ("plugins.disabled=[other]",),
        ("~loggers", "optimizer.betas=[0, 1]"),
    ],
)
def test_the_resolved_config_re_runs_exactly(bakery, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = load(*overrides, config="small")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(Registry.discover(), "bake", str(file)) == config


def test_unknown_keys_name_file_path_and_nearest_key(bakery) -> None:
    Path(bakery.folder / "mine.yaml").write_text("extends: default\noptimizer: {lr: 1, beta: [0, 0]}\ncuont: 3\n")
    error = refusal("model.dtpye=x", config=str(bakery.folder / "mine.yaml"))
    assert error.message.splitlines() == [
        "config of bake: 3 problems",
        "    model.dtpye: unknown key (did you mean 'dtype'?) (in model.dtpye=x)",
        f"    optimizer.beta: unknown key (did you mean 'betas'?) (in {bakery.folder}/mine.yaml)",
        f"    cuont: unknown key (did you mean 'count'?) (in {bakery.folder}/mine.yaml)",
    ]
    assert "peg config show bake" in (error.fix or "")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count=x", "count = 'x': expected a valid integer, unable to parse string as an integer (in count=x)"),
        ("count=-1", "count = -1: expected greater than or equal to 0 (in count=-1)"),
        ("share=x", "share = 'x': expected a valid number"),
        ("model.dtype=3", "model.dtype = 3: expected a valid string (in model.dtype=3)"),
        ("model={dtype: x}", None),
        ("optimizer.lr=0", "optimizer.lr = 0: expected greater than 0 (in optimizer.lr=0)"),
        ("optimizer.betas=[1]", "optimizer.betas.1: a value is required"),
        ("optimizer=stepper2", "optimizer: no installed plugin offers optimizer 'stepper2' (did you mean 'stepper'?)"),
        ("optimizer=3", "optimizer: optimizer is 3 (in optimizer=3)"),
        ("optimizer={lr: 1, use: null}", "has no `use`"),
        ("loggers=[plain, {use: plain, every: 3}]", "loggers.1: logger 'plain' takes no options, given: every"),
        ("loggers=plain", "loggers = 'plain': expected a valid list (in loggers=plain)"),
        ("optimizer.use=no_such:Thing", "optimizer: optimizer: use 'no_such:Thing' cannot be imported"),
        ("nothing=1", "nothing: unknown key; keys here: count, data, loggers, model"),
        ("nothing.deep=1", "nothing: unknown key"),
        ("plugins=3", "plugins is 3"),
        ("plugins.disabled=3", "plugins.disabled is 3"),
        ("plugins.enabled=[a]", "plugins is {'enabled': ['a']}"),
        ("plugins.disabled=[stepper]", "optimizer: optimizer 'stepper' of bake-peg is blocked: disabled as 'stepper'"),
        ("extends=default", "extends: unknown key"),
    ],
)
def test_mistakes(bakery, override: str, message: str | None) -> None:
    if message is None:
        assert load(override)["model"] == {"path": "m", "dtype": "x"}
        return
    error = refusal(override)
    assert message in error.message
    assert error.fix


def test_blocks_of_a_config_act_before_any_import_of_what_is_blocked(bakery) -> None:
    bakery.add("extra-peg", {("logger", "extra"): "extra_peg:S"}, {"extra_peg": "1/0"})
    error = refusal("plugins.disabled=[extra-peg]", "loggers=[extra]")
    assert "is blocked" in error.message
    assert "extra_peg" not in bakery.imported()


def test_another_use_starts_afresh(bakery) -> None:
    door = "from pegboard.plugins.spec import PluginSpec\nS = PluginSpec(kind='optimizer', target='m:T')"
    bakery.add("plain-peg", {("optimizer", "bare"): "plain_peg:S"}, {"plain_peg": door})
    assert load("optimizer=bare")["optimizer"] == {"use": "bare"}


def test_what_is_missing_is_named_at_once(bakery) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Registry.discover(), "bake")
    assert caught.value.message == "bake: default: these keys need a value: output, model.path"
    assert caught.value.fix == "add output=… model.path=…"
    with pytest.raises(ConfigError, match="this key needs a value: output"):
        load_config(Registry.discover(), "bake", None, ["model=x"])


def test_a_required_key_that_is_absent(bakery) -> None:
    assert "optimizer: a value is required" in refusal("~optimizer").message
    assert "optimizer.lr: a value is required" in refusal("~optimizer.lr").message


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a": 1, "b": "${a}"}, {"a": 1, "b": 1}),
        ({"a": {"x": [1, 2]}, "b": "${a.x.1}", "c": "n${a.x.0}"}, {"a": {"x": [1, 2]}, "b": 2, "c": "n1"}),
        ({"a": {"x": 1, "y": "${.x}"}}, {"a": {"x": 1, "y": 1}}),
        ({"a": {"x": 1}, "b": "${a}"}, {"a": {"x": 1}, "b": {"x": 1}}),
        ({"a": "\\${b}"}, {"a": "${b}"}),
        ({"a": "$5 {x}"}, {"a": "$5 {x}"}),
        ({"a": "${oc.env:PEGBOARD_TEST_WORD}"}, {"a": "word"}),
        ({"a": "${oc.env:PEGBOARD_TEST_NONE,none}"}, {"a": "none"}),
    ],
)
def test_references(monkeypatch, tree: dict[str, Any], expected: dict[str, Any]) -> None:
    monkeypatch.setenv("PEGBOARD_TEST_WORD", "word")
    assert resolve_references(Composed(tree), "x") == expected


@pytest.mark.parametrize(
    "tree",
    [
        {"a": "${b}"},
        {"a": "${b}", "b": "${a}"},
        {"a": "${a}"},
        {"a": "${"},
        {"a": "${b.c}", "b": 1},
        {"a": "${oc.env:PEGBOARD_TEST_NONE}"},
        {"a": "${no.such.resolver:1}"},
        {"a": {"deep": ["x", "${nothing}"]}},
    ],
)
def test_references_that_lead_nowhere(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_references(Composed(tree, (("file.yaml", tree),)), "bake: default")
    assert caught.value.message.startswith("bake: default: a")
    assert len(caught.value.message.splitlines()) == 1
    assert "(in file.yaml)" in caught.value.message
    assert "${section.key}" in (caught.value.fix or "")


def test_configs_lie_beside_the_front_door(bakery) -> None:
    registry = Registry.discover()
    assert configs_folder(registry, "bake") == bakery.folder / "bake_door" / "configs"
    given = Registry.of({("recipe", "bake"): RecipeSpec(target="bake_door.run:Bake")})
    assert configs_folder(given, "bake") == bakery.folder / "bake_door" / "configs"
    for target in ("no_such_package.run:Bake", "json:loads"):
        with pytest.raises(PluginError, match="cannot be read as files"):
            configs_folder(Registry.of({("recipe", "bake"): RecipeSpec(target=target)}), "bake")


def test_a_front_door_of_a_recipe_is_a_recipe_spec() -> None:
    registry = Registry.of({("recipe", "bake"): PluginSpec(kind="recipe", target="m:T")})
    with pytest.raises(PluginError, match="front door of recipe 'bake' is a PluginSpec"):
        recipe_spec(registry, "bake")


def test_a_recipe_without_schema_is_its_authors_fault(bakery) -> None:
    registry = Registry.of({("recipe", "bake"): RecipeSpec(target="bake_door.run:Bake")})
    with pytest.raises(PluginError, match="declares no schema"):
        load_config(registry, "bake", None, GIVEN)


@pytest.mark.parametrize(("config", "names"), [({}, []), ({"plugins": None}, []), ({"plugins": {}}, [])])
def test_nothing_is_blocked_by_default(config: dict[str, Any], names: list[str]) -> None:
    assert disabled_plugins(config) == names
