from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pegboard.config import load_config
from pegboard.plugins.load import Registry
from pegboard_sdk.conformance import RecipeSuite
from pegboard_sft.plugin import SPEC

GIVEN = ["model=m", "data.path=d.jsonl", "output=o"]


class TestSft(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, None),
        "demo": ("lora", None),
        "dora": ("dora", None),
        "full": (None, None),
        "lora": ("lora", None),
        "qlora": ("lora", "nf4"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [
        {"instruction": f"say {n}", "response": "hello " * (1 + n % 3)} for n in range(16)
    ]
    given: ClassVar[Sequence[str]] = ("data.format=instruct", "data.validation=4")


def test_dora_is_lora_with_another_adapter() -> None:
    registry = Registry.discover()
    dora, lora = (load_config(registry, "sft", name, GIVEN) for name in ("dora", "lora"))
    assert {**dora, "adapter": None} == {**lora, "adapter": None}
    assert {**dora["adapter"], "use": "lora"} == lora["adapter"]
