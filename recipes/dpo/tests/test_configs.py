from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from pegboard.config import load_config
from pegboard.plugins.load import Registry
from pegboard_dpo.plugin import DPO, KTO, ORPO, SIMPO
from pegboard_sdk.conformance import RecipeSuite

GIVEN = ["model=m", "data.path=d.jsonl", "output=o"]
PLAIN = {"default": (None, None), "full": (None, None), "lora": ("lora", None), "qlora": ("lora", "nf4")}
ADAPTED = ("lora", None)
PAIRS = [{"prompt": f"say {n}", "chosen": "yes " * (1 + n % 3), "rejected": "no " * (1 + n % 4)} for n in range(16)]


class Pairs(RecipeSuite):
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = PLAIN
    rows: ClassVar[Sequence[Mapping[str, Any]]] = PAIRS


Pairs.__test__ = False  # type: ignore[attr-defined]


class TestDpo(Pairs):
    __test__ = True
    spec = DPO
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, None),
        "full": (None, None),
        "ipo": ADAPTED,
        "lora": ADAPTED,
        "qlora": ("lora", "nf4"),
        "robust": ADAPTED,
    }


class TestKto(Pairs):
    __test__ = True
    spec = KTO


class TestOrpo(Pairs):
    __test__ = True
    spec = ORPO


class TestSimpo(Pairs):
    __test__ = True
    spec = SIMPO


@pytest.mark.parametrize(("recipe", "suite"), [("dpo", TestDpo), ("kto", TestKto)])
def test_the_reference_is_a_frozen_copy_or_the_policy_without_its_adapter(
    recipe: str, suite: type[RecipeSuite]
) -> None:
    registry = Registry.discover()
    for name in suite.configs:
        config = load_config(registry, recipe, name, GIVEN)
        assert (config["reference"] is None) == (config["adapter"] is not None)
