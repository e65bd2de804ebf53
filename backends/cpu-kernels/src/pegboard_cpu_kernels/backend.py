"""Attention in the compiled library: paged and unpaged, for serving."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import torch
from torch import Tensor, is_grad_enabled

from pegboard.errors import ConfigError, PluginError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionSpec, KVCache, KVLayout
from pegboard_cpu_kernels import program
from pegboard_cpu_kernels.library import find
from pegboard_cpu_kernels.plan import CpuPlan, Functions
from pegboard_cpu_kernels.threads import follow_torch

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
_PACKED = struct.Struct("14q").pack
_MOST_DIM = 1024
_REMEMBERED = 1024


class _Layer(ctypes.Structure):
    """peg_attention_layer of c/attention.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_heads", "num_kv_heads", "head_dim", "window", "causal")),
        ("type", ctypes.c_int32),
        ("cache_type", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


@dataclass(slots=True)
class _Known:
    """A layer as C sees it, for activations of `dtype` over a cache of `cached`. q_shape, kv_shape: of one token."""

    spec: AttentionSpec
    dtype: torch.dtype
    cached: str | None
    layer: _Layer
    address: int


class CpuAttention(AttentionBackend):
    """Keys and values are read once for all heads that share them; no gradients.

    What a token gets does not depend on the other sequences of its batch or on the number of threads.
    """

    graph_safe = "decode"
    static_pages = False

    def __init__(self) -> None:
        self._library = find()
        self._functions: Functions | None = None
        self._known: dict[int, _Known] = {}

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        if self._library.library is None:
            return self._library.reason
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"{dtype} is not computed here: float32, bfloat16 and float16 are"
        if spec.head_dim > _MOST_DIM:
            return f"heads of {spec.head_dim} values are larger than {_MOST_DIM}"
        return None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        name = str(dtype).removeprefix("torch.")
        if dtype not in _TYPES:
            raise ConfigError(
                f"a cache of {name} is not possible with attention `cpu`",
                fix="use float32, bfloat16, float16 or int8",
            )
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, name, "PHSD", shard)

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> CpuPlan:
        if device.type != "cpu":
            raise ValueError(f"attention `cpu` computes on the cpu, not on {device}")
        if self._functions is None:
            if self._library.library is None:
                raise PluginError(
                    f"attention `cpu` has no library: {self._library.reason}", fix="use `attention: sdpa`"
                )
            self._functions = Functions(self._library.library)
            follow_torch(self._library.library)
        return CpuPlan(self._functions, inputs, layout)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        plan: CpuPlan,  # type: ignore[override]  # a plan is opaque to all but the backend that made it
        cache: KVCache | None,
    ) -> Tensor:
        if is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ConfigError(
                "attention `cpu` computes no gradients, and q, k or v of this layer require one",
                fix="train with `attention: sdpa`, or run under torch.no_grad()",
            )
        dtype, layout, rows, dim = q.dtype, plan.layout, plan.rows, spec.head_dim
        cached = None if layout is None else layout.dtype
        known = self._known.get(id(spec))
        if known is None or known.spec is not spec or known.dtype is not dtype or known.cached != cached:
            known = self._learn(spec, dtype, layout)
        kv_shape = (rows, spec.num_kv_heads, dim)
        shape = (rows, spec.num_heads, dim)
        if q.shape != shape or k.shape != kv_shape or v.shape != kv_shape or not dtype == k.dtype == v.dtype:
            raise ValueError(
                f"q, k and v are {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)} of {q.dtype}, {k.dtype} and {v.dtype}; "
                f"the plan and the layer want {shape} and {kv_shape} of one dtype"
            )
        q_stride, q_head, q_one = q.stride()
        k_stride, k_head, k_one = k.stride()
        v_stride, v_head, v_one = v.stride()
        if q_one != 1 or q_head != dim:
            q = q.contiguous()
            q_stride = q.stride(0)
        if k_one != 1 or k_head != dim:
            k = k.contiguous()
            k_stride = k.stride(0)
        if v_one != 1 or v_head != dim:
            v = v.contiguous()
            v_stride = v.stride(0)
        out = torch.empty(shape, dtype=dtype)
        given = (plan.handle, known.address, q.data_ptr(), q_stride, k.data_ptr(), k_stride, v.data_ptr(), v_stride)
        if layout is None:
            cached_in: tuple[int, ...] = (0, 0, 0, 0, 0)
        else:
            if cache is None:
                raise ValueError("a plan of a layout was made for a batch over a cache, and there is none")
            keys, values, key_scales, value_scales = plan.tensors(cache, spec.layer)
            cached_in = (keys.data_ptr(), values.data_ptr(), key_scales, value_scales, len(keys))
        code = plan.attend(*given, out.data_ptr(), *cached_in)
        if program.recorder is not None and self._functions is not None:
            block = _PACKED(*given, out.data_ptr(), *cached_in)
            program.recorder.note(self._functions.packed, block, plan, known, q, k, v, out, cache)
        if code:
            if code == -9:
                raise ValueError(f"the plan names pages or slots behind the {len(cache.k[spec.layer])} of the cache")  # type: ignore[union-attr]
            raise MemoryError("no memory for the working space of attention")
        return out

    def _learn(self, spec: AttentionSpec, dtype: torch.dtype, layout: KVLayout | None) -> _Known:
        """Note a layer by its identity, which costs less than its hash. It is kept, so that no other can have the same."""
        if reason := self.unsupported(spec, dtype):
            raise PluginError(f"attention `cpu` cannot compute this layer: {reason}", fix="use `attention: sdpa`")
        if spec.num_heads % spec.num_kv_heads:
            raise ValueError(f"{spec.num_heads} heads cannot share {spec.num_kv_heads} key heads")
        if layout is not None and (layout.num_kv_heads, layout.head_dim) != (spec.num_kv_heads, spec.head_dim):
            raise ValueError(
                f"the layer has {spec.num_kv_heads} key heads of {spec.head_dim}, the cache's layout "
                f"{layout.num_kv_heads} of {layout.head_dim}"
            )
        cached = dtype if layout is None else getattr(torch, layout.dtype)
        if cached not in _TYPES:
            raise ValueError(f"a cache of {layout.dtype if layout else cached} is none of attention `cpu`'s")
        layer = _Layer(
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.window or 0,
            spec.causal,
            _TYPES[dtype],
            _TYPES[cached],
            spec.scale,
            spec.softcap or 0.0,
        )
        known = _Known(spec, dtype, layout.dtype if layout else None, layer, ctypes.addressof(layer))
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[id(spec)] = known
        return known
