from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from pegboard.config import load_config
from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard_qat.plugin import SPEC
from pegboard_qat.recipe import TrainRounded
from pegboard_sdk.conformance import RecipeSuite

GIVEN = ["model=m", "data.path=d.jsonl", "output=o"]


class TestQat(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, "int4_qat"),
        "full": (None, "int4_qat"),
        "lora": ("lora", "int4_qat"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [
        {"instruction": f"say {n}", "response": "hello " * (1 + n % 3)} for n in range(16)
    ]
    given: ClassVar[Sequence[str]] = ("data.format=instruct", "quantizer.group=16")
    left: ClassVar[Sequence[str]] = ("converted",)


def test_a_quantizer_that_does_not_train_is_refused() -> None:
    registry = Registry.discover()
    config = load_config(registry, "qat", "full", [*GIVEN, "quantizer={use: int4}"])
    with pytest.raises(ConfigError, match=r"quantizer\.use=int4 holds weights that nothing trains"):
        TrainRounded().run(SPEC, config, registry)
