from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pegboard_engine.text import OutputText, StopText
from pegboard_sdk.toys.tokenizer import EOS, TinyTokenizer


def told(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    text = StopText(stops)
    return "".join(map(text.push, pieces)) + text.flush(), text.stopped_by is not None


def plain(stops: list[str], text: str) -> tuple[str, bool]:
    """The text up to the stop that is complete first, the longest of several that are."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
    st.text("ab", max_size=12),
    st.lists(st.integers(0, 12), max_size=6),
)
def test_any_cutting_gives_the_same_text(stops: list[str], text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert told(stops, pieces) == plain(stops, text)


def test_holds_back_what_may_be_a_stop() -> None:
    text = StopText(["STOP"])
    assert [text.push(piece) for piece in ("oneST", "O", "nSTO", "P and more")] == ["one", "", "STOn", ""]
    assert text.stopped_by is not None
    assert text.push("again") == ""


def test_output_text_joins_bytes_to_characters() -> None:
    text = OutputText(TinyTokenizer().stream(), ["é!"])
    pieces = [text.push(byte) for byte in "aéé!b".encode()]
    assert "".join(pieces) + text.flush() == "aé"
    assert text.stopped_by is not None
    assert pieces[1] == ""  # half a character
    other = OutputText(TinyTokenizer().stream(), [])
    assert other.push(EOS) == ""


def test_tells_which_text_stopped_it_and_passes_it_on_when_asked() -> None:
    for include, expected in ((False, "a"), (True, "ab-")):
        text = OutputText(TinyTokenizer().stream(), ["xyz", "b-"], include_stop=include)
        assert "".join(text.push(byte) for byte in b"ab-c") + text.flush() == expected
        assert text.stopped_by == "b-"


def test_no_text_stops_before_it_may() -> None:
    text = OutputText(TinyTokenizer().stream(), ["a"])
    assert [text.push(byte, may_stop=place >= 2) for place, byte in enumerate(b"aaba")] == ["a", "a", "b", ""]
    assert text.stopped_by == "a"
