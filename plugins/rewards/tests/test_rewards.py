from __future__ import annotations

import pytest

from pegboard.errors import DataError, PegboardError
from pegboard.interfaces.reward import Answered
from pegboard.plugins.load import Registry
from pegboard_rewards.plugin import GSM8K, PATTERN
from pegboard_sdk.conformance import PluginSuite

REGISTRY = Registry.of({("reward", "gsm8k"): GSM8K, ("reward", "pattern"): PATTERN})


class TestGsm8k(PluginSuite):
    kind = "reward"
    spec = GSM8K


class TestPattern(PluginSuite):
    kind = "reward"
    spec = PATTERN
    options = {"pattern": "a"}  # noqa: RUF012


def right(text: str, solution: object = "6 * 7 = 42\n#### 42", **options: object) -> float:
    (value,) = REGISTRY.create("reward", {"use": "gsm8k", **options})(
        [Answered("", text, columns={"answer": solution})]
    )
    return float(value)


@pytest.mark.parametrize(
    "text", ["#### 42", "41 first, so\n#### $42.00\nmore", "it is 42", "it is 42.", "#### 41 no:\n#### 42.", "6*7=42"]
)
def test_right(text: str) -> None:
    assert right(text) == 1.0


@pytest.mark.parametrize(
    "text", ["#### 43", "", "42 and then 43", "42 says it\n#### 41", "#### forty-two", "-42", "NaN"]
)
def test_wrong(text: str) -> None:
    assert right(text) == 0.0


def test_options() -> None:
    assert right("it is 42", flexible=False) == 0.0
    assert right("=> 42", mark="=>", solution="=> 42") == 1.0
    assert right("#### 1,234,567", solution="#### 1234567") == 1.0
    assert right("####  Paris.", solution="paris") == 1.0
    assert right("Paris", solution="#### Paris") == 1.0
    assert right("the answer is 7", solution=7) == 1.0


def test_a_row_without_a_solution_is_named() -> None:
    with pytest.raises(DataError, match="column 'answer' is None"):
        REGISTRY.create("reward", "gsm8k")([Answered("", "42")])


def test_pattern() -> None:
    answers = [Answered("", text) for text in ("<think>a\nb</think>c", "c", "x<think></think>")]
    form = "<think>.*</think>"
    assert REGISTRY.create("reward", {"use": "pattern", "pattern": form})(answers) == [1.0, 0.0, 1.0]
    assert REGISTRY.create("reward", {"use": "pattern", "pattern": form + ".+", "whole": True})(answers) == [
        1.0,
        0.0,
        0.0,
    ]


def test_a_wrong_expression_is_told() -> None:
    with pytest.raises(PegboardError, match="no regular expression"):
        REGISTRY.create("reward", {"use": "pattern", "pattern": "("})
