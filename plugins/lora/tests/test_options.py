from __future__ import annotations

import pytest
from pydantic import ValidationError

from pegboard.errors import ConfigError
from pegboard_lora.options import LoraOptions
from pegboard_lora.targets import select

NAMES = [
    f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [0, 3]),
        (["self_attn.v_proj", "down_proj"], [1, 2, 4, 5]),
        (["layers.1.*"], [3, 4, 5]),
        (["[qv]_proj"], [0, 1, 3, 4]),
        ("all-linear", [0, 1, 2, 3, 4, 5]),
        (r".*\.0\..*(q|v)_proj", [0, 1]),
        ("q_proj", [0, 3]),
        (["model.layers.1.mlp.down_proj"], [5]),
    ],
)
def test_select(targets: str | list[str], expected: list[int]) -> None:
    assert select(NAMES, targets) == [NAMES[i] for i in expected]


@pytest.mark.parametrize("targets", [["q_proj", "w_proj"], ["proj"], r".*x_proj", ["*.9.*"]])
def test_target_without_module_is_refused(targets: str | list[str]) -> None:
    with pytest.raises(ConfigError, match="down_proj, q_proj, v_proj"):
        select(NAMES, targets)


def test_nearest_name_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"'q_prj' .did you mean 'q_proj'"):
        select(NAMES, ["q_prj"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0},
        {"dropout": 1.0},
        {"targets": "("},
        {"rank_pattern": {"q": 0}},
        {"rnk": 3},
        {"bias": "all"},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoraOptions(**wrong)  # type: ignore[arg-type]


def test_rank_and_scaling_by_pattern() -> None:
    options = LoraOptions(
        rank=4, alpha=8, rank_pattern={r"layers\.1\.self_attn\.q_proj": 16}, alpha_pattern={"v_proj": 2}
    )
    assert [options.rank_of(name) for name in NAMES] == [4, 4, 4, 16, 4, 4]
    assert [options.scaling_of(name) for name in NAMES] == [2, 0.5, 2, 0.5, 0.5, 2]
    assert LoraOptions(rank=16, alpha=8, rslora=True).scaling_of("x") == 2
