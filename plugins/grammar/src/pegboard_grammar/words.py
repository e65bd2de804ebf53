"""What llguidance says, in words for the person who wrote the grammar."""

from __future__ import annotations

import re

from pegboard.errors import DataError

LONGEST = 300
"""Characters of an explanation."""

_EXCERPT = re.compile(r"\s*(\d+ \||\^)")
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_LIMIT = re.compile(r"fuel|too big|too large|too many|max is|limit|too complex|Unable to determine", re.IGNORECASE)


def refusal(what: str, said: str, kind: str) -> DataError:
    """Return the error for what llguidance said about `what`, a grammar of `kind`."""
    if "panic" in said:
        return DataError(f"{what} is too large for the compiler", fix="use fewer or simpler parts")
    reason = _reason(said, with_place=kind == "ebnf")
    if "NoExtension" in said:
        return DataError(
            f"{what} can be matched by no text", fix="look for parts that refer to themselves without an end"
        )
    if _LIMIT.search(said):
        return DataError(f"{what} is too complex: {reason}", fix="use fewer or simpler parts, and smaller counts")
    return DataError(f"{what} cannot be used: {reason}", fix=_FIXES.get(kind, "mend it there"))


_FIXES = {
    "json_schema": "change that part of it: what cannot be enforced is refused",
    "regex": "use the syntax of Rust's regex crate: no look-around, no back-references",
    "ebnf": "mend it there; the dialect is llguidance's Lark, or GBNF",
}


def _reason(said: str, with_place: bool) -> str:
    """Return one line: without excerpts of the source, and without line numbers where the author wrote no lines."""
    lines = [line for line in said.splitlines() if not _EXCERPT.match(line) and "non-verbose" not in line]
    place = _PLACE.match(said)
    text = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), " ".join(lines))
    text = _PLACE.sub("", text).replace("failed to compile JSON schema: ", "").replace('failed to parse "%json": ', "")
    text = text.replace("Unimplemented keys:", "these keywords cannot be enforced:").strip()
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return f"line {place[1]}, column {place[2]}: {text}" if place and with_place else text
