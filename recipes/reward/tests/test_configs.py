from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pegboard_reward.plugin import SPEC
from pegboard_sdk.conformance import RecipeSuite


class TestReward(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, None),
        "full": (None, None),
        "lora": ("lora", None),
        "qlora": ("lora", "nf4"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [
        {"prompt": f"say {n}", "chosen": "yes " * (1 + n % 3), "rejected": "no " * (1 + n % 4)} for n in range(16)
    ]
