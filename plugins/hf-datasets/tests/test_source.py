"""A folder laid out as a data set of the hub, so that nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import DataError

pytestmark = pytest.mark.filterwarnings("default")
ROWS = [{"messages": [{"role": "user", "content": f"é {number}"}], "n": number} for number in range(20)]

Options = Callable[..., Any]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    from pegboard_hf_datasets.options import HubOptions

    folder = tmp_path_factory.mktemp("data")
    for split, rows in (("train", ROWS), ("test", ROWS[:3])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = tmp_path_factory.mktemp("cache")

    def make(suffix: str = "", **given: Any) -> HubOptions:
        return HubOptions(path=f"{folder}{suffix}", cache=str(cache), **given)

    return make


def test_rows_of_a_split_in_any_order(options: Options) -> None:
    from pegboard_hf_datasets.source import HubSource

    source = HubSource(options())
    assert len(source) == 20
    assert [row for _, row in source.rows()] == ROWS
    assert [source.row(index) for index in (19, 0, 7)] == [ROWS[index] for index in (19, 0, 7)]
    assert list(source.rows(18)) == [(18, ROWS[18]), (19, ROWS[19])]
    assert source.describe(7).endswith("(train), row 7")
    for other in (HubSource(options("@test")), HubSource(options(split="train[:3]"))):
        assert [row for _, row in other.rows()] == ROWS[:3]
    assert source.fingerprint() == HubSource(options()).fingerprint() != HubSource(options("@test")).fingerprint()


def test_a_stream_continues_where_it_is_asked_to(options: Options) -> None:
    from pegboard_hf_datasets.source import HubStream

    source = HubStream(options())
    assert list(source.rows()) == list(enumerate(ROWS))
    assert list(source.rows(17)) == list(enumerate(ROWS))[17:]
    assert source.describe(3).endswith("(train), row 3")
    assert source.fingerprint() is None


def test_what_cannot_be_loaded_is_named(options: Options, tmp_path: Path) -> None:
    from pegboard_hf_datasets.source import HubSource

    with pytest.raises(DataError, match=r"\(tset\) cannot be loaded: ") as caught:
        HubSource(options(split="tset"))
    assert "data.split" in str(caught.value.fix)
    with pytest.raises(DataError, match="cannot be loaded"):
        HubSource(type(options())(path=str(tmp_path)))
