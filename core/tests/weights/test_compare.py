from __future__ import annotations

import pytest

from pegboard.errors import ModelError
from pegboard.weights import compare_names_shapes


def test_equal_sets_pass() -> None:
    compare_names_shapes({"a": (1, 2), "b": ()}, {"b": (), "a": (1, 2)})


def test_everything_wrong_is_listed_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        compare_names_shapes(
            {"a": (1, 2), "b": (3,), "same": (4,)}, {"b": (4,), "c": (5,), "same": (4,)}, where="m.safetensors"
        )
    text = str(caught.value)
    for part in (
        "m.safetensors",
        "1 missing:\n    a [1, 2]",
        "1 unexpected:\n    c [5]",
        "b: [4], the model needs [3]",
    ):
        assert part in text
    assert "same" not in text


def test_long_lists_are_counted() -> None:
    with pytest.raises(ModelError, match="50 missing") as caught:
        compare_names_shapes({f"a{i}": (1,) for i in range(50)}, {})
    assert "and 42 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 15
