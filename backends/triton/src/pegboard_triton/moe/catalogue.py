"""How the kernels are launched, for compilation ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from pegboard_triton.catalogue import Variant
from pegboard_triton.moe import grouped, order, packed, router, single, training
from pegboard_triton.quantized.packed import FLOAT8, INT4, INT8, NF4

_SHAPE = {"HIDDEN": 2048, "INNER": 768, "EXPERTS": 128}
_GATES = {"TOP_K": 8, "ACTIVATION": "silu"}
_IDS = {"ids": "*i64", "order": "*i32", "offsets": "*i32", "pairs": "i32"}
_SMALL = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 1, "DESCRIBED": 0, "TAIL": 0}
_LARGE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP": 8, "DESCRIBED": 0, "TAIL": 0}
_DESCRIBED = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP": 1, "DESCRIBED": 1, "TAIL": 64}


def variants() -> Iterator[Variant]:
    """Yield those of all kernels of mixtures of experts."""
    yield from _route_variants()
    yield from _order_variants()
    for kind in ("bf16", "fp32"):
        yield from _tile_variants(kind)
        yield from _row_variants(kind)
        yield from _training_variants(kind)
    yield from _packed_variants()


def _route_variants() -> Iterator[Variant]:
    types = {"ids": "*i64", "weights": "*fp32", "tokens": "i32", "stride": "i32"}
    sizes = {"EXPERTS": 128, "TOP_K": 8, "RENORMALISE": True, "WIDTH": 128, "CHOSEN": 8}
    for kind in ("bf16", "fp32"):
        for block in (1, 4):
            yield Variant(
                f"moe.choose_experts[{kind},{block}]",
                router.choose_experts,
                {"logits": f"*{kind}", **types},
                {**sizes, "BLOCK_T": block},
                {"num_warps": block},
            )


def _order_variants() -> Iterator[Variant]:
    few = {"EXPERTS": 128, "CHUNK": 1024, "PLACES": True}
    placed = {**_IDS, "places": "*i32"}
    yield Variant("moe.order_few", order.order_few, placed, few, {"num_warps": 4})
    chunked = {"EXPERTS": 128, "WIDTH": 128, "CHUNK": 1024, "PART": 1024}
    counts = {"ids": "*i64", "counts": "*i32", "pairs": "i32"}
    yield Variant("moe.count_chunks", order.count_chunks, counts, chunked, {"num_warps": 4})
    types = {**placed, "counts": "*i32", "chunks": "i32"}
    constants = {**chunked, "ROWS": 16, "SHARE": 8, "PLACES": True}
    yield Variant("moe.place_chunks", order.place_chunks, types, constants, {"num_warps": 4})
    wide = {"EXPERTS": 128, "WIDTH": 128}
    types = {"counts": "*i32", "starts": "*i32", "offsets": "*i32", "chunks": "i32"}
    yield Variant("moe.start_chunks", order.start_chunks, types, {**wide, "ROWS": 32, "COLUMNS": 16}, {"num_warps": 4})
    types = {"ids": "*i64", "starts": "*i32", "order": "*i32", "places": "*i32", "pairs": "i32"}
    ranked = {**wide, "CHUNK": 256, "STEP": 32, "PLACES": True}
    yield Variant("moe.place_ranked", order.place_ranked, types, ranked, {"num_warps": 4})


def _tile_variants(kind: str) -> Iterator[Variant]:
    pointer = f"*{kind}"
    rows = {**_IDS, "out": pointer, "weight": pointer, "blocks": "i32"}
    up = {**rows, "x": pointer, "x_stride": "i32"}
    low = {**rows, "act": pointer, "tiled": pointer, "scales": "*fp32"}
    ways: dict[str, dict[str, int]] = {"few": {"FEW": 64, **_SMALL}, "sorted": {"FEW": 0, **_SMALL}}
    if kind == "bf16":
        ways |= {"large": {"FEW": 0, **_LARGE}, "described": {"FEW": 0, **_DESCRIBED}}
    for way, use in ways.items():
        if use["DESCRIBED"]:
            tile, part = (f"tensordesc<{kind}[{use[size]}, {use['BLOCK_K']}]>" for size in ("BLOCK_N", "BLOCK_M"))
            up, low = {**up, "weight": tile}, {**low, "weight": tile, "tiled": part}
        constants = {**_SHAPE, "WIDTH": 128, **use}
        options = {"num_warps": 8 if use["DESCRIBED"] else 4, "num_stages": 2}
        yield Variant(f"moe.gate_up[{kind},{way}]", grouped.gate_up, up, {**constants, **_GATES}, options)
        yield Variant(f"moe.down[{kind},{way}]", grouped.down, low, constants, options)
    sums = {"parts": pointer, "ids": "*i64", "out": pointer}
    sizes = {"HIDDEN": 2048, "EXPERTS": 128, "TOP_K": 8, "BLOCK": 1024}
    yield Variant(f"moe.combine[{kind}]", grouped.combine, sums, sizes, {"num_warps": 4})


def _row_variants(kind: str) -> Iterator[Variant]:
    pointer = f"*{kind}"
    block = {"BLOCK_N": 8, "BLOCK_K": 256, "STAGES": 2}
    types = {"x": pointer, "weight": pointer, "ids": "*i64", "out": pointer, "x_stride": "i32"}
    gates = {**_SHAPE, **_GATES, **block}
    yield Variant(f"moe.single_gate_up[{kind}]", single.single_gate_up, types, gates, {"num_warps": 4})
    types = {"act": pointer, "weight": pointer, "ids": "*i64", "scales": "*fp32", "out": pointer}
    sums = {**_SHAPE, "TOP_K": 8, **block}
    yield Variant(f"moe.single_down[{kind}]", single.single_down, types, sums, {"num_warps": 4})


def _training_variants(kind: str) -> Iterator[Variant]:
    pointer = f"*{kind}"
    types = {"x": pointer, "order": "*i32", "offsets": "*i32", "out": pointer, "x_stride": "i32"}
    sizes = {"EXPERTS": 128, "TOP_K": 8, "WIDTH": 2048, "BLOCK": 1024}
    yield Variant(f"moe.spread[{kind}]", training.spread, types, sizes, {"num_warps": 4})
    types = {"parts": pointer, "places": "*i32", "scales": "*fp32", "out": pointer}
    summed = {"TOP_K": 8, "WIDTH": 2048, "SCALED": True, "BLOCK": 1024}
    yield Variant(f"moe.gather_sum[{kind}]", training.gather_sum, types, summed, {"num_warps": 4})
    types = dict.fromkeys(("inner", "grad", "d_inner", "act"), pointer)
    types |= {"order": "*i32", "offsets": "*i32", "scales": "*fp32", "d_scales": "*fp32"}
    gated = {"EXPERTS": 128, "WIDTH": 768, "ACTIVATION": "silu", "BLOCK": 1024}
    yield Variant(f"moe.gated_backward[{kind}]", training.gated_backward, types, gated, {"num_warps": 4})


def _packed_variants() -> Iterator[Variant]:
    formats = {"int8": (INT8, "*i8", 1, 0), "float8": (FLOAT8, "*u8", 128, 128), "int4": (INT4, "*u8", 1, 128)}
    formats["nf4"] = (NF4, "*u8", 1, 64)
    for name, (form, codes, shared, scaled) in formats.items():
        nested = 256 if name == "nf4" else 0
        types = {
            "weight": codes,
            "scales": "*u8" if nested else "*fp32",
            "ids": "*i64",
            "order": "*i32",
            "offsets": "*i32",
        }
        types |= {
            "out": "*bf16",
            "pairs": "i32",
            "blocks": "i32",
            **dict.fromkeys(("table", "nested", "offset", "numbers"), "*fp32"),
        }
        for way, few in (("few", 64), ("sorted", 0)):
            block = {"BLOCK_M": 16 if few else 64, "BLOCK_N": 64, "BLOCK_K": scaled or 64, "GROUP": 1}
            constants = {**_SHAPE, "WIDTH": 128, "FEW": few, "FORMAT": form.value, "SHARED": shared, **block}
            constants["NESTED"] = nested
            options = {"num_warps": 4, "num_stages": 2}
            up = {**types, "x": "*bf16", "x_stride": "i32"}
            gates = {**constants, "SCALED": scaled or 2048, "TOP_K": 8, "ACTIVATION": "silu"}
            yield Variant(f"moe.packed_gate_up[{name},{way}]", packed.packed_gate_up, up, gates, options)
            low = {**types, "act": "*bf16", "weights": "*fp32"}
            sums = {**constants, "SCALED": scaled or 768}
            yield Variant(f"moe.packed_down[{name},{way}]", packed.packed_down, low, sums, options)
