"""Do a checkpoint's tensors fit the model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pegboard.errors import ModelError

SHOWN = 8
"""Names listed of each sort; the rest is counted."""


def compare_names_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, where: str = "the checkpoint"
) -> None:
    """Compare the parameters of a model with the tensors of a checkpoint, both name -> shape.

    Raises one ModelError that lists the missing, the unexpected and the mis-shaped tensors together.
    """
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    unexpected = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    misshaped = [
        f"{name}: {list(found[name])}, the model needs {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    parts = [
        line
        for title, lines in (("missing", missing), ("unexpected", unexpected), ("of a wrong shape", misshaped))
        for line in _listed(title, lines)
    ]
    if parts:
        raise ModelError(
            "\n".join([f"the tensors of {where} do not fit its config", *parts]),
            fix="config.json and weights must belong to one model: download or convert it again",
        )


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [f"  {len(lines)} {title}:", *(f"    {line}" for line in lines[:SHOWN]), *more]
