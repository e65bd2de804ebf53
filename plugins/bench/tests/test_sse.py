"""Events come out the same however their bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard_bench import sse
from pegboard_bench.sse import EventReader, EventTooLarge

TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_cuts_do_not_matter(events: list[list[str]], ending: str, data: st.DataObject) -> None:
    text = ""
    for lines in events:
        text += ": a comment" + ending + "event: x" + ending
        text += "".join(f"data: {line}{ending}" for line in lines) + ending
    raw, reader, found = text.encode(), EventReader(), []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        found += reader.push(raw[:size])
        raw = raw[size:]
    assert found == ["\n".join(lines).encode() for lines in events]


def test_one_blank_after_the_colon_is_no_part_of_the_data() -> None:
    assert EventReader().push(b"data:x\n\ndata:  y\n\ndata\n\nid: 3\n\n") == [b"x", b" y", b""]


def test_an_event_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LARGEST", 10)
    reader = EventReader()
    assert reader.push(b"data: 1234\n") == []
    with pytest.raises(EventTooLarge, match="more than 10 bytes"):
        reader.push(b"data: 12345")
