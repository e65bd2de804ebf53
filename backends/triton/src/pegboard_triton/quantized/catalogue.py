"""How the kernels are launched, for compilation ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from pegboard_triton.catalogue import Variant
from pegboard_triton.quantized.few import packed_few
from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8, NF4
from pegboard_triton.quantized.rows import add_parts, packed_rows
from pegboard_triton.quantized.widen import widen_all


def variants() -> Iterator[Variant]:
    """Yield those of all kernels of packed weights."""
    formats = {"int8": (INT8, "*i8", 4096), "float8": (FLOAT8, "*u8", 4096), "int4": (INT4, "*u8", 128)}
    for kind in ("bf16", "fp32"):
        for name, (form, codes, scaled) in formats.items():
            types = {"x": f"*{kind}", "weight": codes, "scales": "*fp32", "bias": f"*{kind}"}
            types |= {"out": f"*{kind}", **dict.fromkeys(("rows", "outputs", "x_stride", "out_stride"), "i32")}
            sizes = {"INPUTS": 4096, "SHARED": 1, "SCALED": scaled, "FORMAT": form.value, "BIAS": True, "SPLIT": 1}
            sizes |= {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64}
            yield Variant(f"packed_rows[{name},{kind}]", packed_rows, types, sizes, {"num_warps": 4, "num_stages": 2})
        for name, form, shared in (("int4", INT4, 0), ("nf4", NF4, 256)):
            types = {"packed": "*u8", "scales": "*u8" if shared else "*fp32", "out": f"*{kind}", "size": "i32"}
            types |= dict.fromkeys(("table", "nested", "offset"), "*fp32")
            types["numbers"] = "*fp32"
            constants = {"SCALED": 64, "FORMAT": form.value, "NESTED": shared, "BLOCK": 1024, "EACH": 0}
            yield Variant(f"widen[{name},{kind}]", widen_all, types, constants, {"num_warps": 4})
            if form == NF4:
                experts = {**constants, "EACH": 768 * 2048 // 64}
                yield Variant(f"widen[{name},experts,{kind}]", widen_all, types, experts, {"num_warps": 4})
        types = {"parts": "*fp32", "bias": f"*{kind}", "out": f"*{kind}"}
        types |= dict.fromkeys(("size", "outputs", "out_stride"), "i32")
        yield Variant(
            f"add_parts[{kind}]", add_parts, types, {"BIAS": True, "SPLIT": 4, "BLOCK": 512}, {"num_warps": 4}
        )
    few = {"int8": (INT8, "*i8", 4096, 0), "float8": (FLOAT8, "*u8", 128, 0), "int4": (INT4, "*u8", 128, 0)}
    few |= {"nf4": (NF4, "*u8", 64, 256)}
    for name, (form, codes, scaled, coded) in few.items():
        types = {"x": "*i32" if form in (INT4, NF4) else "*bf16", "weight": codes, "bias": "*bf16", "out": "*bf16"}
        types |= {"scales": "*u8" if coded else "*fp32", **dict.fromkeys(("outputs", "x_stride", "out_stride"), "i32")}
        types |= dict.fromkeys(("table", "nested", "offset", "values"), "*fp32")
        constants = {"INPUTS": 4096, "SHARED": 1, "SCALED": scaled, "NESTED": coded, "FORMAT": form.value, "BIAS": True}
        constants |= {"ROWS": 2, "BLOCK_N": 4, "BLOCK_K": 512}
        yield Variant(f"packed_few[{name}]", packed_few, types, constants, {"num_warps": 4})
