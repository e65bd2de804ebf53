"""What the README shows works, and its table names every flag."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pegboard.interfaces.logger import Logger, RunInfo
from pegboard.plugins.spec import PluginSpec
from pegboard_sdk import conformance
from pegboard_sdk.conformance import LoggerSuite

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_logger_of_the_readme_logs(tmp_path: Path) -> None:
    entry = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    assert entry == {"pegboard.logger": {"acme": "pegboard_acme.plugin:SPEC"}}
    scope: dict[str, Any] = {}
    door, implementation = blocks("python")[:2]
    exec(door, scope)
    exec(implementation, scope)
    assert isinstance(scope["SPEC"], PluginSpec)
    logger = scope["AcmeLogger"]()
    assert isinstance(logger, Logger)
    logger.start(RunInfo("acme", tmp_path, {}, 1))
    logger.log(1, {"loss": 2.5})
    logger.finish("finished")
    assert (tmp_path / "acme.txt").read_text() == "1 {'loss': 2.5}\n"


def test_suites_of_the_readme_can_be_defined() -> None:
    for block in blocks("python")[2:4]:
        body = "\n".join(line for line in block.splitlines() if not line.startswith("from "))
        scope: dict[str, Any] = {"LoggerSuite": LoggerSuite, "SPEC": PluginSpec(kind="logger", target="a:B")}
        exec(body, scope)
        assert issubclass(scope["TestAcme"], LoggerSuite)


@pytest.mark.parametrize("name", conformance.__all__)
def test_table_names_every_flag_and_setting(name: str) -> None:
    suite = getattr(conformance, name)
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", README, re.MULTILINE)
    given, _, settings = row.rpartition("|")
    flags, _, others = settings.partition(";")
    flags, others, methods = ({*re.findall(r"`(\w+)", text)} for text in (flags, others, given))
    own = {key: value for key, value in vars(suite).items() if key in suite.__annotations__}
    assert flags == {key for key, value in own.items() if value is True}
    assert others - {"roles"} <= set(dir(suite))
    unnamed = set(suite.__annotations__) - flags - others - methods - {"spec", "kind"}
    assert unnamed == set()
