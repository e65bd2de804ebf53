from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pegboard_distill.plugin import SPEC
from pegboard_sdk.conformance import RecipeSuite


class TestDistill(RecipeSuite):
    spec = SPEC
    configs: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {
        "default": (None, None),
        "full": (None, None),
        "lora": ("lora", None),
        "qlora": ("lora", "nf4"),
    }
    rows: ClassVar[Sequence[Mapping[str, Any]]] = [
        {"instruction": f"say {n}", "response": "hello " * (1 + n % 3)} for n in range(16)
    ]
    given: ClassVar[Sequence[str]] = ("teacher={other}", "data.format=instruct")
