"""The ways in which the kernels of attention are launched, for compilation ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pegboard_triton.attention.decode import decode_kernel
from pegboard_triton.attention.prefill import prefill_kernel
from pegboard_triton.attention.write import prepare_kernel, write_kernel
from pegboard_triton.catalogue import Variant

_CELLS = {"plain": (0, None), "int8": (1, "*i8"), "fp8": (2, "*u8")}
_STRIDES = dict.fromkeys(("page_stride", "head_stride", "slot_stride"), "i32")
_LAYER = {"scale": "fp32", "softcap": "fp32", "window": "i32", "q_stride": "i32", "q_head": "i32", **_STRIDES}
_ARRAYS = ("seq_lens", "starts", "page_starts", "pages")


def variants() -> Iterator[Variant]:
    """Yield a choice of dtypes, cells and shapes of heads that covers every branch."""
    for dtype in ("bf16", "fp16", "fp32"):
        for cells, (code, pointer) in _CELLS.items():
            if cells != "plain" and dtype != "bf16":
                continue
            signature = _cells(dtype, pointer)
            name = f"[{dtype},{cells}]"
            # Query heads a key head, and their width.
            for group, dim in ((2, 128), (4, 64)) if cells == "plain" and dtype == "bf16" else ((4, 128),):
                branches = {"CAPPED": dim == 64, "WINDOWED": dim == 64}
                layer = {"GROUP": group, "HEAD_DIM": dim, "BLOCK_D": dim, "PAGE": 16, "KIND": code, **branches}
                yield _decode(f"{name[:-1]},{group}x{dim}]", dtype, signature, layer, dim)
                if dim == 64:
                    yield _decode(f"{name[:-1]},{group}x{dim},turned before]", dtype, signature, layer, 0)
                yield _prefill(f"{name[:-1]},{group}x{dim}]", dtype, signature, layer)
            at = {"HEAD_DIM": 80, "BLOCK_D": 128, "PAGE": 16, "KIND": code, "BLOCK_H": 8, "EARLY": False}
            yield _write(name, dtype, signature, at)
            yield _prepare(name, dtype, signature, at | {"KEPT": False})
            if cells == "plain":
                yield _prepare(f"{name[:-1]},keys kept]", dtype, signature, at | {"KEPT": True})
        whole = {"GROUP": 4, "HEAD_DIM": 128, "BLOCK_D": 128, "PAGE": 0, "KIND": 0, "CAPPED": False, "WINDOWED": False}
        yield _prefill(f"[{dtype},whole]", dtype, _cells(dtype, None), whole)


def _cells(dtype: str, pointer: str | None) -> dict[str, str]:
    own = pointer or f"*{dtype}"
    return {"keys": own, "values": own, "key_scales": "*fp32", "value_scales": "*fp32"}


def _decode(name: str, dtype: str, cells: dict[str, str], layer: dict[str, Any], turned: int) -> Variant:
    arrays = dict.fromkeys(("items", "pages", "slots", "counters"), "*i32")
    signature = {"q": f"*{dtype}", "out": f"*{dtype}", "parts": "*fp32", "sums": "*fp32", **cells, **arrays, **_LAYER}
    signature |= dict.fromkeys(("cos", "sin", "q_weight", "k_weight"), f"*{dtype}") | {"eps": "fp32", "offset": "fp32"}
    blocks = {
        "QUERIES": 1,
        "BLOCK_M": 16,
        "BLOCK_R": layer["GROUP"],
        "BLOCK_S": 8,
        "BLOCK_Q": 1,
        "TURNED": turned,
        "NORMED": turned > 0,
        "EARLY": False,
        "BLOCK_N": 16 if dtype == "fp32" else 64,
    }
    options = {"num_warps": 4, "num_stages": 1 if dtype == "fp32" else 2}
    return Variant(f"attention.decode{name}", decode_kernel, signature, layer | blocks, options)


def _prefill(name: str, dtype: str, cells: dict[str, str], layer: dict[str, Any]) -> Variant:
    arrays = dict.fromkeys((*_ARRAYS, "tile_seqs", "tile_firsts"), "*i32")
    signature = {
        "q": f"*{dtype}",
        "out": f"*{dtype}",
        **cells,
        **arrays,
        **_LAYER,
        "value_head": "i32",
        "value_slot": "i32",
    }
    wide = dtype == "fp32"
    blocks = {"BLOCK_M": 32 if wide else 128, "BLOCK_N": 16 if wide else 64}
    options = {"num_warps": 4 if wide else 8, "num_stages": 1}
    return Variant(f"attention.prefill{name}", prefill_kernel, signature, layer | blocks, options)


def _write(name: str, dtype: str, cells: dict[str, str], constants: dict[str, Any]) -> Variant:
    sizes = dict.fromkeys(("kv_heads", "k_stride", "k_head", "v_stride", "v_head"), "i32")
    signature = {"k": f"*{dtype}", "v": f"*{dtype}", "slots": "*i32", **cells, **sizes, **_STRIDES}
    return Variant(f"attention.write{name}", write_kernel, signature, constants, {"num_warps": 4})


def _prepare(name: str, dtype: str, cells: dict[str, str], constants: dict[str, Any]) -> Variant:
    pointers = dict.fromkeys(("qkv", "cos", "sin", "q_weight", "k_weight", "q", "kept"), f"*{dtype}")
    sizes = {"heads": "i32", "kv_heads": "i32", "eps": "fp32", "offset": "fp32", "stride": "i32"}
    signature = {**pointers, "slots": "*i32", **cells, **sizes, **_STRIDES}
    return Variant(
        f"attention.prepare{name}",
        prepare_kernel,
        signature,
        constants | {"TURNED": 64, "NORMED": True},
        {"num_warps": 4},
    )
