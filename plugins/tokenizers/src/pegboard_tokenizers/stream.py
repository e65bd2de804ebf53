"""Text from ids that come one by one.

What a token adds to a text depends on its neighbours: bytes of one character are spread over tokens, some decoders drop
the first space of a text, others put spaces between words. Each stream here gives pieces whose sum is the text that
decoding all ids at once gives.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pegboard.errors import DataError
from pegboard.interfaces.tokenizer import TextStream

Decode = Callable[[Sequence[int]], str]
TokenOf = Callable[[int], str | None]
"""Gives the token of an id, None for an id that decoding leaves out."""


def _byte_letters() -> dict[str, int]:
    """Return the letters that byte-level BPE spells bytes with: printable Latin-1 as it is, the others from U+0100 on."""
    letters, spare = {}, 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte:
            letters[chr(byte)] = byte
        else:
            letters[chr(spare)] = byte
            spare += 1
    return letters


BYTE_LETTERS = _byte_letters()


class ByteStream(TextStream):
    """For byte-level decoders, whose text is that of all bytes laid end to end."""

    def __init__(self, token_of: TokenOf) -> None:
        self._token_of = token_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that are complete with this token."""
        return self._decoder.decode(token_bytes(self._token_of(token_id) or ""))

    def flush(self) -> str:
        """Return a replacement character if the text ends inside a character."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def token_bytes(token: str) -> bytes:
    """Return the bytes that a byte-level token spells; a token that holds another letter stands for itself."""
    try:
        return bytes([BYTE_LETTERS[letter] for letter in token])
    except KeyError:
        return token.encode()


class WindowStream(TextStream):
    """For decoders that look at a token and its neighbours: decodes the pending tokens after the last ones given out.

    bytes_fallback: tokens <0x00> … <0xFF> are bytes, of which a whole run is decoded or none, so a run is held until it ends.
    """

    def __init__(self, decode: Decode, token_of: TokenOf, *, byte_fallback: bool) -> None:
        self._decode, self._token_of, self._byte_fallback = decode, token_of, byte_fallback
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Return the text of the pending tokens, unless this one is a byte of an unfinished run."""
        token = self._token_of(token_id)
        if token is None:
            return ""
        self._pending.append(token_id)
        return "" if self._byte_fallback and _is_byte(token) else self.flush()

    def flush(self) -> str:
        """Return the text of the pending tokens."""
        before = self._decode(self._context)
        text = self._decode(self._context + self._pending)[len(before) :]
        # Tokens without text are no context: after them a decoder would still think that it is at the start.
        self._context = self._pending if text else self._context + self._pending
        self._pending = []
        return text


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


class WholeStream(TextStream):
    """For decoders that are not known to work piece by piece: all text comes with `flush`."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        """Return nothing yet."""
        self._ids.append(token_id)
        return ""

    def flush(self) -> str:
        """Return the text."""
        text = self._decode(self._ids)
        self._ids = []
        return text


def make_stream(decoder: Mapping[str, Any] | None, decode: Decode, token_of: TokenOf) -> TextStream:
    """Return the stream for a decoder as tokenizer.json describes it (None: words with spaces between them)."""
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteStream(token_of)
    if _piecewise(steps):
        return WindowStream(decode, token_of, byte_fallback="ByteFallback" in kinds)
    return WholeStream(decode)


def make_token_bytes(decoder: Mapping[str, Any] | None, decode: Decode) -> Callable[[str, int], bytes]:
    """Return a function from (token, id) to the bytes that it adds to a text that it does not begin.

    The function raises DataError for a decoder whose text for a token is not known to be the same after any other one.
    """
    steps = _steps(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return lambda token, token_id: token_bytes(token)
    if not steps or not _piecewise(steps) or {"WordPiece", "BPEDecoder"} & set(kinds):

        def refuse(token: str, token_id: int) -> bytes:
            raise DataError(
                f"what the token {token!r} adds to a text cannot be told: the tokenizer's decoder looks at other tokens too",
                fix="leave out what is restricted by a grammar for this model",
            )

        return refuse

    def after_itself(token: str, token_id: int) -> bytes:
        if "ByteFallback" in kinds and _is_byte(token):
            return bytes([int(token[3:5], 16)])
        # At the start of a text, decoders drop a space; after the token itself they do what they do everywhere else.
        return decode([token_id, token_id])[len(decode([token_id])) :].encode()

    return after_itself


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [inner for step in decoder.get("decoders", []) for inner in _steps(step)]
    return [decoder]


def _piecewise(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every step works token by token, looking no further than at the first, the last or the one before.

    After Fuse the whole text is one token; only taking a single leading character off it leaves later text alone.
    """
    fused = False
    for step in steps:
        kind = step.get("type")
        if fused:
            if kind != "Strip" or step.get("start", 0) > 1 or step.get("stop", 0) > 0:
                return False
        elif kind == "Fuse":
            fused = True
        elif kind not in ("Replace", "ByteFallback", "Metaspace", "WordPiece", "BPEDecoder", "Strip"):
            return False
    return True
