"""The ways in which the kernels are launched, for compilation ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from pegboard_triton.catalogue import Variant
from pegboard_triton.lora.few import embed_rows, expand_few, shrink_few
from pegboard_triton.lora.grouped import expand_grouped, shrink_grouped
from pegboard_triton.operators import TYPES

_SAME = {"SLOTS": 8, "RECORD": 11, "WIDTH": 192}


def variants() -> Iterator[Variant]:
    """Yield each kernel for every dtype, with block sizes of every table entry."""
    for kind in TYPES.values():
        x = {"x": f"*{kind}", "slots": "*i64", "table": "*i64", "inner": "*fp32", "x_stride": "i32"}
        out = {
            "out": f"*{kind}",
            "slots": "*i64",
            "table": "*i64",
            "inner": "*fp32",
            "tiles": "*i32",
            "out_stride": "i32",
        }
        by = {"order": "*i32", "offsets": "*i32", "rows": "i32"}
        shrink = {**_SAME, "INPUTS": 4096, "BLOCK_R": 4, "BLOCK_K": 1024}
        yield Variant(f"lora.shrink_few[{kind}]", shrink_few, x, shrink, {"num_warps": 4})
        ids = {"ids": "*i64", "slots": "*i64", "table": "*i64", "out": f"*{kind}", "out_stride": "i32"}
        sizes = {"SLOTS": 8, "RECORD": 5, "COLUMNS": 4096, "BLOCK_R": 16, "BLOCK_N": 256}
        yield Variant(f"lora.embed_rows[{kind}]", embed_rows, ids, sizes, {"num_warps": 4})
        for aligned in (True, False):
            name = f"[{kind}]" if aligned else f"[{kind},odd]"
            expand = {**_SAME, "ALIGNED": aligned, "BLOCK_R": 16, "BLOCK_N": 256}
            yield Variant(f"lora.expand_few{name}", expand_few, out, expand, {"num_warps": 4})
        for block, parts in ((16, 8), (64, 1)):
            tile = {**_SAME, "POWER": 8, "BLOCK_M": block, "BLOCK_R": 16}
            options = {"num_warps": 4, "num_stages": 2}
            name = f"[{kind},{block}]"
            inputs = {"INPUTS": 4096, "PART": 4096 // parts, "BLOCK_K": 128}
            yield Variant(f"lora.shrink_grouped{name}", shrink_grouped, x | by, tile | inputs, options)
            columns = {"PARTS": parts, "ALIGNED": True, "BLOCK_N": 128}
            yield Variant(f"lora.expand_grouped{name}", expand_grouped, out | by, tile | columns, options)
