"""Compile every kernel for targets that need not be there: python -m pegboard_triton.aot cuda:90 hip:gfx942 [--only NAME]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pegboard_triton.catalogue import Variant, variants

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")
_BINARY = {"cuda": "cubin", "hip": "hsaco"}


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
    """Return the machine code of a variant for a target. Raises what Triton raises when it does not compile."""
    import triton
    from triton.compiler import ASTSource

    signature = {name: variant.signature.get(name, "constexpr") for name in variant.kernel.arg_names}
    source = ASTSource(variant.kernel, signature, dict(variant.constants))
    compiled = triton.compile(source, target=target(text), options=dict(variant.options))
    code: bytes = compiled.asm[_BINARY[text.partition(":")[0]]]
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and print a line for each variant and target; return 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m pegboard_triton.aot", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", default=TARGETS, help=f"such as {' '.join(TARGETS)} (all of these without)"
    )
    parser.add_argument("--only", default="", help="variants whose name contains this")
    options = parser.parse_args(arguments)
    failed = 0
    for variant in variants():
        if options.only not in variant.name:
            continue
        for text in options.targets:
            try:
                size = len(compile_variant(variant, text))
                print(f"{variant.name} {text}: {size} bytes")
            except Exception as error:  # Triton raises many kinds; each is this kernel's failure, and the rest go on
                failed += 1
                print(f"{variant.name} {text}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
