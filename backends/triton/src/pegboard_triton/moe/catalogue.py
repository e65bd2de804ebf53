"""How the kernels are launched, for compilation ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from pegboard_triton.catalogue import Variant
from pegboard_triton.moe import grouped, order, packed, single, training
from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8

_SHAPE = {"HIDDEN": 2048, "INNER": 768, "EXPERTS": 128}
_TYPES = {"bf16": "*bf16", "fp32": "*fp32"}
_SMALL = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "GROUP": 1, "DESCRIBED": 0, "TAIL": 0}
_LARGE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP": 8, "DESCRIBED": 0, "TAIL": 0}


def variants() -> Iterator[Variant]:
    """Yield those of all kernels of mixtures of experts."""
    ids = {"ids": "*i64", "order": "*i32", "offsets": "*i32", "pairs": "i32"}
    few = {"EXPERTS": 128, "CHUNK": 1024, "PLACES": True}
    placed = {**ids, "places": "*i32"}
    yield Variant("moe.order_few", order.order_few, placed, few, {"num_warps": 4})
    chunked = {"EXPERTS": 128, "WIDTH": 128, "CHUNK": 1024, "PART": 1024}
    counts = {"ids": "*i64", "counts": "*i32", "pairs": "i32"}
    yield Variant("moe.count_chunks", order.count_chunks, counts, chunked, {"num_warps": 4})
    places = {**placed, "counts": "*i32", "chunks": "i32"}
    yield Variant(
        "moe.place_chunks",
        order.place_chunks,
        places,
        {**chunked, "ROWS": 16, "SHARE": 8, "PLACES": True},
        {"num_warps": 8},
    )
    for name, pointer in _TYPES.items():
        rows = {**ids, "out": pointer, "weight": pointer, "blocks": "i32"}
        up = {**rows, "x": pointer, "x_stride": "i32"}
        low = {**rows, "act": pointer, "tiled": pointer, "scales": "*fp32"}
        same = {**_SHAPE, "WIDTH": 128}
        gates = {"TOP_K": 8, "ACTIVATION": "silu"}
        ways: dict[str, dict[str, int]] = {"few": {"FEW": 64, **_SMALL}, "sorted": {"FEW": 0, **_LARGE}}
        for way, use in ways.items():
            options = {"num_warps": 4, "num_stages": 2}
            yield Variant(f"moe.gate_up[{name},{way}]", grouped.gate_up, up, {**same, **gates, **use}, options)
            yield Variant(f"moe.down[{name},{way}]", grouped.down, low, {**same, **use}, options)
        block = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP": 8}
        tile, part = (
            f"tensordesc<{pointer[1:]}[{block[size]}, {block['BLOCK_K']}]>" for size in ("BLOCK_N", "BLOCK_M")
        )
        described = {"FEW": 0, "DESCRIBED": 1, "TAIL": 64, **block}
        options = {"num_warps": 8, "num_stages": 2}
        up, low = {**up, "weight": tile}, {**low, "weight": tile, "tiled": part}
        yield Variant(f"moe.gate_up[{name},described]", grouped.gate_up, up, {**same, **gates, **described}, options)
        yield Variant(f"moe.down[{name},described]", grouped.down, low, {**same, **described}, options)
        one = {"x": pointer, "weight": pointer, "ids": "*i64", "out": pointer, "x_stride": "i32"}
        few_rows = {"BLOCK_N": 8, "BLOCK_K": 256, "STAGES": 2}
        yield Variant(
            f"moe.single_gate_up[{name}]", single.single_gate_up, one, {**_SHAPE, **gates, **few_rows}, {"num_warps": 4}
        )
        other = {"act": pointer, "weight": pointer, "ids": "*i64", "scales": "*fp32", "out": pointer}
        yield Variant(
            f"moe.single_down[{name}]", single.single_down, other, {**_SHAPE, "TOP_K": 8, **few_rows}, {"num_warps": 4}
        )
        sums = {"parts": pointer, "ids": "*i64", "out": pointer}
        most = {"HIDDEN": 2048, "EXPERTS": 128, "TOP_K": 8, "BLOCK": 1024}
        yield Variant(f"moe.combine[{name}]", grouped.combine, sums, most, {"num_warps": 4})
        spread = {"x": pointer, "order": "*i32", "offsets": "*i32", "out": pointer, "x_stride": "i32"}
        wide = {"EXPERTS": 128, "TOP_K": 8, "WIDTH": 2048, "BLOCK": 1024}
        yield Variant(f"moe.spread[{name}]", training.spread, spread, wide, {"num_warps": 4})
        gathered = {"parts": pointer, "places": "*i32", "scales": "*fp32", "out": pointer}
        sizes = {"TOP_K": 8, "WIDTH": 2048, "SCALED": True, "BLOCK": 1024}
        yield Variant(f"moe.gather_sum[{name}]", training.gather_sum, gathered, sizes, {"num_warps": 4})
        back = dict.fromkeys(("inner", "grad", "d_inner", "act"), pointer)
        back |= {"order": "*i32", "offsets": "*i32", "scales": "*fp32", "d_scales": "*fp32"}
        gated = {"EXPERTS": 128, "WIDTH": 768, "ACTIVATION": "silu", "BLOCK": 1024}
        yield Variant(f"moe.gated_backward[{name}]", training.gated_backward, back, gated, {"num_warps": 4})
    yield from _packed_variants()


def _packed_variants() -> Iterator[Variant]:
    formats = {"int8": (INT8, "*i8", 1, 0), "float8": (FLOAT8, "*u8", 128, 128), "int4": (INT4, "*u8", 1, 128)}
    for name, (form, codes, shared, scaled) in formats.items():
        types = {"weight": codes, "scales": "*fp32", "ids": "*i64", "order": "*i32", "offsets": "*i32", "out": "*bf16"}
        types |= {"pairs": "i32", "blocks": "i32"}
        for way, few in (("few", 64), ("sorted", 0)):
            block = {"BLOCK_M": 16 if few else 64, "BLOCK_N": 64, "BLOCK_K": scaled or 64, "GROUP": 1}
            constants = {**_SHAPE, "WIDTH": 128, "FEW": few, "FORMAT": form.value, "SHARED": shared, **block}
            options = {"num_warps": 4, "num_stages": 2}
            up = {**types, "x": "*bf16", "x_stride": "i32"}
            gates = {**constants, "SCALED": scaled or 2048, "TOP_K": 8, "ACTIVATION": "silu"}
            yield Variant(f"moe.packed_gate_up[{name},{way}]", packed.packed_gate_up, up, gates, options)
            low = {**types, "act": "*bf16", "weights": "*fp32"}
            sums = {**constants, "SCALED": scaled or 768}
            yield Variant(f"moe.packed_down[{name},{way}]", packed.packed_down, low, sums, options)
