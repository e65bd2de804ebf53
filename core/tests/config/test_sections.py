"""Sections of a recipe's schema that belong to plugins."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pegboard.config import Choice, OptionsSection, PathSection, PluginSection
from pegboard.config.compose import Composed
from pegboard.config.errors import config_error, keys_at, validate_options
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard.plugins.spec import PluginSpec


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lr: float = 0.1


class Custom:
    schema = Options


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = 1
    either: int | bool | None = None


class Data(OptionsSection):
    kind = "logger"
    use: str = "path"
    shuffle: bool = True


class PathOptions(Options):
    path: str
    deep: Inner = Inner()


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    optimizer: Annotated[Choice, PluginSection("optimizer")] = Field(default={"use": "sgd"})
    data: Annotated[Choice, PluginSection("source", default="rows", bare="path")] | None = None
    rewards: dict[str, Annotated[Choice, PluginSection("logger")]] = {}
    inner: Inner = Inner()
    many: list[Inner] = []
    mixed: Data | None = None


REGISTRY = Registry.of(
    {
        ("optimizer", "sgd"): PluginSpec(kind="optimizer", target="m:T", schema=f"{__name__}:Options"),
        ("source", "rows"): PluginSpec(kind="source", target="m:T"),
        ("logger", "path"): PluginSpec(kind="logger", target="m:T", schema=f"{__name__}:PathOptions"),
        ("logger", "log"): PluginSpec(kind="logger", target="m:T", schema=f"{__name__}:Options"),
    }
)


MIXED = {"path": "p", "use": "path", "shuffle": True, "lr": 0.1, "deep": {"size": 1, "either": None}}


def check(value: dict[str, Any]) -> dict[str, Any]:
    try:
        return Config.model_validate(value, context={"registry": REGISTRY}).model_dump(mode="json")
    except ValidationError as error:
        raise config_error(error, Config, "config", Composed(value)) from None


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        ({"optimizer": "sgd"}, "optimizer", {"use": "sgd", "lr": 0.1}),
        ({"optimizer": {"use": "sgd", "lr": "2"}}, "optimizer", {"use": "sgd", "lr": 2.0}),
        ({"optimizer": f"{__name__}:Custom"}, "optimizer", {"use": f"{__name__}:Custom", "lr": 0.1}),
        ({"optimizer": {"use": "json:loads", "any": 1}}, "optimizer", {"use": "json:loads", "any": 1}),
        ({"rewards": {"a": "log"}}, "rewards", {"a": {"use": "log", "lr": 0.1}}),
        ({"data": None}, "data", None),
        ({"mixed": "p"}, "mixed", MIXED),
        ({"mixed": {"path": "p", "lr": "3", "shuffle": False}}, "mixed", {**MIXED, "lr": 3.0, "shuffle": False}),
    ],
)
def test_sections(value: dict[str, Any], key: str, expected: Any) -> None:
    assert check(value)[key] == expected
    assert check(check(value))[key] == expected


def test_without_a_registry_options_are_taken_as_they_are() -> None:
    typed = Config.model_validate({"optimizer": {"use": "any", "x": 1}, "data": "p", "mixed": {"path": "p", "y": 2}})
    assert typed.mixed is not None
    assert typed.mixed.choice == {"use": "path", "path": "p", "y": 2}
    assert typed.optimizer == {"use": "any", "x": 1}
    assert typed.data == {"use": "rows", "path": "p"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"optimizer": {"use": "sgd", "lrr": 1}}, "optimizer.lrr: unknown key (did you mean 'lr'?)"),
        ({"data": "p"}, "data: source 'rows' takes no options, given: path"),
        ({"rewards": {"a": {"use": "log", "lr": "x"}}}, "rewards.a.lr = 'x': expected a valid number"),
        ({"rewards": {"a": "lgo"}}, "rewards.a: no installed plugin offers logger 'lgo' (did you mean 'log'?)"),
        ({"optimizer": f"{__name__}:Custmo"}, "did you mean 'Custom'?"),
        ({"optimizer": {"use": f"{__name__}:Custom", "x": 1}}, "optimizer.x: unknown key; keys here: lr"),
        (
            {"inner": {"either": "x"}},
            "inner.either = 'x': expected a valid integer, unable to parse string as an integer or expected a valid boolean",
        ),
        ({"many": [{}, {"sise": 2}]}, "many.1.sise: unknown key (did you mean 'size'?)"),
        ({"many": [1]}, "many.0 = 1: expected a valid dictionary or instance of Inner"),
        ({"inner": {"size": "a" * 200}}, "…"),
        ({"mixed": {"path": "p", "shufle": False}}, "mixed.shufle: unknown key (did you mean 'shuffle'?)"),
        ({"mixed": {"path": "p", "lrr": 1}}, "mixed.lrr: unknown key (did you mean 'lr'?)"),
        ({"mixed": {"path": "p", "deep": {"shuffle": 1}}}, "mixed.deep.shuffle: unknown key; keys here: either, size"),
        ({"mixed": {"path": "p", "lr": "x"}}, "mixed.lr = 'x': expected a valid number"),
        ({"mixed": {"path": "p", "use": "nothing"}}, "mixed: no installed plugin offers logger 'nothing'"),
        ({"mixed": {"use": "log", "path": "p"}}, "mixed.path: unknown key"),
        ({"mixed": {}}, "mixed.path: a value is required"),
    ],
)
def test_complaints(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(value)
    assert message in caught.value.message
    assert all(len(line) < 300 for line in caught.value.message.splitlines())


def test_all_problems_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check({"optimizer": {"use": "sgd", "a": 1, "b": 2}, "inner": {"size": "x"}, "data": "p"})
    assert caught.value.message.startswith("config: 4 problems\n    ")
    assert caught.value.fix == "remove path"


def test_options_alone() -> None:
    assert validate_options(Options, {"lr": 1}, "optimizer 'x'").lr == 1
    with pytest.raises(ConfigError, match="optimizer 'x': lr = 'a': expected a valid number"):
        validate_options(Options, {"lr": "a"}, "optimizer 'x'")


def test_a_bare_path() -> None:
    assert PathSection.model_validate("p").path == "p"
    with pytest.raises(ValidationError):
        PathSection.model_validate({"path": "p", "more": 1})


@pytest.mark.parametrize(
    ("loc", "keys"),
    [
        ([], ["data", "inner", "many", "mixed", "optimizer", "rewards"]),
        (["inner"], ["either", "size"]),
        (["many", 3], ["either", "size"]),
        (["inner", "size"], []),
        (["nothing"], []),
    ],
)
def test_keys_at_a_location(loc: list[int | str], keys: list[str]) -> None:
    assert keys_at(Config, loc) == keys
