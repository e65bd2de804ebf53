"""Statistics as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BAR = 40
"""Characters of the longest bar."""


def render(found: Mapping[str, Any]) -> str:
    """Return what `pegboard_trainer.inspect.stats.collect` found, for people."""
    tokens, learned = found["tokens"], found["learned"]
    lines = [
        f"rows       {found['rows']:,}" + (f", {found['bad']:,} of them bad" if found["bad"] else ""),
        f"examples   {found['examples']:,} kept, {found['cut']:,} of them cut to length; {found['left_out']:,} left out",
        f"tokens     {tokens:,}, {learned:,} learned ({learned / max(tokens, 1):.1%})",
        f"batches    {found['batches']:,}, {found['filled']:.1%} full; {found['steps']:,} steps in one process",
    ]
    if found["lengths"]:
        lines.append("lengths    " + ", ".join(f"{name} {value:,.0f}" for name, value in found["lengths"].items()))
        most = max(count for _, count in found["histogram"]) or 1
        for end, count in found["histogram"]:
            label = f"≤ {end:,}" if end >= 0 else "longer"
            lines.append(f"{label:>10} {'█' * round(BAR * count / most)} {count:,}")
    for part in found["sources"]:
        share = part["tokens"] / max(tokens, 1)
        lines.append(f"source     {part['source']}: {part['rows']:,} rows, {part['tokens']:,} tokens ({share:.1%})")
    if found["bad"]:
        lines += ["bad rows", *(f"  {message}" for message in found["bad_rows"])]
        if found["bad"] > len(found["bad_rows"]):
            lines.append(f"  and {found['bad'] - len(found['bad_rows']):,} more")
    return "\n".join(lines)
