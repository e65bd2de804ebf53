from __future__ import annotations

import pytest

from pegboard.config import list_configs, load_config
from pegboard.config.resolve import configs_folder
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard_qat.config import QatConfig
from pegboard_qat.plugin import SPEC
from pegboard_qat.recipe import TrainRounded
from pegboard_sdk.conformance import PluginSuite

GIVEN = ["model=m", "data.path=d.jsonl", "output=o"]


class TestQat(PluginSuite):
    spec = SPEC


def test_every_config_is_valid_once_its_paths_are_given() -> None:
    registry = Registry.discover()
    assert list(list_configs(configs_folder(registry, "qat"))) == ["default", "full", "lora"]
    for name in ("default", "full", "lora"):
        config = QatConfig.model_validate(load_config(registry, "qat", name, GIVEN))
        assert config.quantizer["use"] == "int4_qat"
        assert (config.adapter or {}).get("use") == ("lora" if name == "lora" else None)
        assert config.convert


def test_a_quantizer_that_does_not_train_is_refused() -> None:
    registry = Registry.discover()
    config = load_config(registry, "qat", "full", [*GIVEN, "quantizer={use: int4}"])
    with pytest.raises(ConfigError, match=r"quantizer\.use=int4 holds weights that nothing trains"):
        TrainRounded().run(SPEC, config, registry)
