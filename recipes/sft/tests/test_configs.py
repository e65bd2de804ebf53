from __future__ import annotations

import pytest

from pegboard.config import list_configs, load_config
from pegboard.config.resolve import configs_folder
from pegboard.plugins.load import Registry
from pegboard_trainer.config import TrainConfig

GIVEN = ["model=m", "data.path=d.jsonl", "output=o"]


def test_every_config_is_valid_once_its_paths_are_given() -> None:
    registry = Registry.discover()
    names = list(list_configs(configs_folder(registry, "sft")))
    assert names == ["default", "demo", "dora", "full", "lora", "qlora"]
    for name in names:
        given = [*GIVEN, *(["data.validation=v.jsonl"] if name == "demo" else [])]
        config = TrainConfig.model_validate(load_config(registry, "sft", name, given))
        assert config.output == "o"
        assert (config.adapter or {}).get("use") == {
            "lora": "lora",
            "demo": "lora",
            "dora": "dora",
            "qlora": "lora",
        }.get(name)
        assert (config.quantizer or {}).get("use") == ("nf4" if name == "qlora" else None)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_dora_is_lora_with_another_adapter(adapter: str) -> None:
    registry = Registry.discover()
    config = load_config(registry, "sft", adapter, GIVEN)
    reference = load_config(registry, "sft", "lora", GIVEN)
    assert {**config, "adapter": None} == {**reference, "adapter": None}
    assert {**config["adapter"], "use": "lora"} == reference["adapter"]
