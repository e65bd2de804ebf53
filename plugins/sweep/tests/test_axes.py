from __future__ import annotations

import pytest

from pegboard.errors import ConfigError
from pegboard.interfaces.search import Axis
from pegboard_sweep.axes import parse_axes, split_values


def test_overrides_are_varied_or_fixed() -> None:
    given = [
        "lr=1e-5, 1e-4",
        "model=a/b.gguf",
        "~clip",
        "rank=int(2,8)",
        "drop=uniform(0,.5)",
        "targets=[q,k]",
        "f=f(a)",
    ]
    axes, fixed = parse_axes(given)
    assert axes == [
        Axis("lr", ("1e-5", "1e-4")),
        Axis("rank", (), 2, 8, integer=True),
        Axis("drop", (), 0, 0.5),
    ]
    assert fixed == ["model=a/b.gguf", "~clip", "targets=[q,k]", "f=f(a)"]
    assert parse_axes(["lr=log(1e-5,1)", "n=logint(1,100)"])[0] == [
        Axis("lr", (), 1e-5, 1, log=True),
        Axis("n", (), 1, 100, log=True, integer=True),
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b", ["a", "b"]),
        ("[q,k],[q,k,v]", ["[q,k]", "[q,k,v]"]),
        ("{use: a, x: 1},b", ["{use: a, x: 1}", "b"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("'it(s',b", ["'it(s'", "b"]),
        ("plain", ["plain"]),
    ],
)
def test_commas_inside_brackets_and_quotes_belong_to_a_value(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=1,,2", "a value is empty"),
        ("lr=1,2,1", "'1' stands there twice"),
        ("lr=log(0,1)", "no logarithm of 0"),
        ("lr=uniform(2,1)", "no numbers in it"),
        ("lr=uniform(1)", "is no range"),
        ("lr=uniform(a,b)", "is no range"),
        ("lr=uniform(0,inf)", "no numbers in it"),
        ("rank=int(1,2.5)", "no whole numbers"),
    ],
)
def test_wrong_ones_are_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_axes([override])
    with pytest.raises(ConfigError, match="varied twice"):
        parse_axes(["lr=1,2", "lr=3,4"])
