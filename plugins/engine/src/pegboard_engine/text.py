"""From token ids to text as it comes, cut at stop texts."""

from __future__ import annotations

from collections.abc import Sequence

from pegboard.interfaces.tokenizer import TextStream


class StopText:
    """Passes text on, up to the first stop text; holds back what may be the beginning of one.

    The result does not depend on how the text is cut into pieces: the stop text that is complete first ends it (the longest of
    several that are complete at the same character). include: the stop text itself is passed on too. stopped_by: which one came.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, piece: str) -> str:
        """Add a piece and return the text that is now certain. After a stop, nothing more is."""
        if self.stopped_by is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, start, self.stopped_by = min(ends)
            self._held = ""
            return text[: end if self._include else start]
        hold = max(_overlap(text, stop) for stop in self._stops)
        cut = len(text) - hold
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held


class OutputText:
    """The text of one request's output."""

    def __init__(self, stream: TextStream, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stream = stream
        self._stop = StopText(stops, include=include_stop)

    @property
    def stopped_by(self) -> str | None:
        """The stop text that has come, if one has."""
        return self._stop.stopped_by

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """Add a token and return the text that is now certain. may_stop: False while no stop text counts yet."""
        piece = self._stream.push(token)
        return self._stop.push(piece) if may_stop else piece

    def flush(self) -> str:
        """End the text and return what was held back."""
        return self._stop.push(self._stream.flush()) + self._stop.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
