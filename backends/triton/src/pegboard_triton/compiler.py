"""The Triton that is installed: which one it is, what it compiles for, and what to tell people about it."""

from __future__ import annotations

from functools import cache
from importlib import metadata, util
from importlib.resources import files
from json import loads

BACKENDS = {"cuda": "nvidia", "hip": "amd", "xpu": "intel"}
"""Kind of target -> Triton's name for the part of it that compiles for such."""


@cache
def lacking(kind: str) -> str:
    """Return why no kernel can be compiled for targets of this kind; empty when they can."""
    if util.find_spec("triton") is None:
        return "Triton is not installed"
    from triton.backends import backends

    if BACKENDS[kind] in backends:
        return ""
    return f"{name()} has no backend {BACKENDS[kind]}: install the Triton that belongs to this torch"


def name() -> str:
    """Return the version of Triton, and the distribution that it is from where that has another name: builds of torch bring their own."""
    import triton

    owner = min(metadata.packages_distributions().get("triton", ["triton"]))
    return f"Triton {triton.__version__}" + ("" if owner == "triton" else f" of {owner}")


def notes(target: str, card: str) -> list[str]:
    """Return lines about the compilation for a card. target: such as "cuda:90"; card: as its driver names it."""
    from pegboard_triton.aot import TARGETS

    kind = target.partition(":")[0]
    if reason := lacking(kind):
        return [f"no kernels of pegboard-triton: {reason}"]
    tested = " ".join(text for text in TARGETS if text.startswith(kind)) or "nothing of this kind"
    tables = sorted((path for path in (files(__package__) / "tuned").iterdir()), key=lambda path: path.name)
    tuned = [path.name.removesuffix(".json") for path in tables if card in loads(path.read_text())]
    return [
        f"{name()} compiles for {target}; tests compile every kernel for {tested}",
        f"block sizes measured on {card}: {', '.join(tuned) or 'none, so that the defaults are used'}",
    ]
