"""Server-sent events, read as their bytes come."""

from __future__ import annotations

LARGEST = 16 << 20
"""Bytes of the longest line that is read."""


class EventTooLarge(ValueError):
    """A line does not end within `LARGEST` bytes."""


class EventReader:
    """Splits a stream into the data of its events, as the HTML standard has it: however the bytes are cut, the events are the same."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_return = False

    def push(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that `piece` completes. Raises EventTooLarge."""
        if self._after_return and piece:
            # A line feed after a carriage return is the second half of one line ending.
            piece = piece.removeprefix(b"\n")
            self._after_return = False
        text = self._rest + piece
        if text.endswith(b"\r"):
            self._after_return = True
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LARGEST:
            raise EventTooLarge(f"a line of more than {LARGEST} bytes")
        events = []
        for line in lines:
            if line:
                field, _, value = line.partition(b":")
                if field == b"data":
                    self._data.append(value.removeprefix(b" "))
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
