"""Compile every kernel for targets that need not be there: python -m pegboard_triton.aot cuda:90 hip:gfx942 [--only NAME]."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

from pegboard_triton.catalogue import Variant, variants

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")
_BINARY = {"cuda": "cubin", "hip": "hsaco"}
_SHARED = {"cuda:80": 163, "cuda:90": 227, "cuda:100": 227, "hip:gfx90a": 64, "hip:gfx942": 64}
"""KiB of shared memory that one program may have: more compiles, and cannot be launched."""


def target(text: str) -> Any:
    """Return Triton's target for "cuda:90" or "hip:gfx942". Raises ValueError for another form."""
    from triton.backends.compiler import GPUTarget

    backend, _, arch = text.partition(":")
    if backend == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if backend == "hip" and arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)  # CDNA: a wavefront is 64 lanes
    raise ValueError(f"unknown target {text!r}: write cuda:90 or hip:gfx942")


def compile_variant(variant: Variant, text: str) -> bytes:
    """Return the machine code of a variant for a target. Raises what Triton raises when it does not compile, and ValueError when it
    needs more shared memory than the target has.
    """
    import triton
    from triton.compiler import ASTSource

    signature = {name: variant.signature.get(name, "constexpr") for name in variant.kernel.arg_names}
    source = ASTSource(variant.kernel, signature, dict(variant.constants))
    compiled = triton.compile(source, target=target(text), options=dict(variant.options))
    shared, limit = compiled.metadata.shared, _SHARED.get(text)
    if limit is not None and shared > limit * 1024:
        raise ValueError(f"it needs {shared:,} bytes of shared memory, and {text} has {limit} KiB")
    code: bytes = compiled.asm[_BINARY[text.partition(":")[0]]]
    return code


def chosen(only: str = "", *, thin: bool = False) -> Iterator[Variant]:
    """Yield the variants whose name contains `only`. thin: of those of one kernel that differ in types alone, the first."""
    seen: set[tuple[object, ...]] = set()
    for variant in variants():
        constants = sorted((name, str(value)) for name, value in variant.constants.items())
        key = (variant.kernel.fn, *constants)
        if only in variant.name and not (thin and key in seen):
            seen.add(key)
            yield variant


@cache
def _known() -> dict[str, Variant]:
    return {variant.name: variant for variant in variants()}


def _attempt(name: str, text: str) -> tuple[bool, str]:
    """Return whether it compiles, and the line to print."""
    try:
        return True, f"{name} {text}: {len(compile_variant(_known()[name], text))} bytes"
    except Exception as error:  # Triton raises many kinds; each is this kernel's failure, and the rest go on
        return False, f"{name} {text}: {type(error).__name__}: {error}"


def _results(work: Sequence[tuple[str, str]], jobs: int) -> Iterator[tuple[bool, str]]:
    if jobs == 1 or not work:
        yield from (_attempt(*pair) for pair in work)
        return
    # Spawned: a forked child would have the locks of Triton's threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_attempt, *zip(*work, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and print a line for each variant and target; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m pegboard_triton.aot", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", default=TARGETS, help=f"such as {' '.join(TARGETS)} (all of these without)"
    )
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--thin", action="store_true", help="one of the variants that differ in types alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    options = parser.parse_args(arguments)
    names = [variant.name for variant in chosen(options.only, thin=options.thin)]
    work = [(name, text) for name in names for text in options.targets]
    failed = 0
    for good, line in _results(work, options.jobs):
        failed += not good
        print(line, file=sys.stdout if good else sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
