"""The attention backend: what it can compute, and what a layer's call becomes."""

from __future__ import annotations

import torch
from torch import Tensor

from pegboard.errors import ConfigError, PluginError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import AttentionInputs, AttentionSpec, HeadNorms, KVCache, KVLayout
from pegboard_triton.attention.decode import decode
from pegboard_triton.attention.plan import FEW, CachedPlan, WholePlan
from pegboard_triton.attention.prefill import prefill
from pegboard_triton.attention.write import prepare, write
from pegboard_triton.operators import INTERPRETED, on

Plan = CachedPlan | WholePlan

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CELLS = (*_DTYPES, torch.int8, torch.float8_e4m3fn)
_WIDEST = 256


class TritonAttention(AttentionBackend):
    """Decodes by chunks of keys, prompts by tiles of queries, over a paged cache or without one; no gradients.

    What a token gets depends on its own sequence and on how its keys are cut into chunks, which follows from the lengths in its batch.
    """

    graph_safe = "decode"
    static_pages = False
    static_queries = FEW

    def unsupported(self, spec: AttentionSpec, dtype: torch.dtype) -> str | None:
        if not spec.causal:
            return "only causal attention is computed"
        if dtype not in _DTYPES:
            return f"{dtype} is none of float32, bfloat16 and float16"
        if spec.head_dim > _WIDEST:
            return f"heads of {spec.head_dim} are wider than {_WIDEST}"
        if spec.num_heads // spec.num_kv_heads > 64:
            return f"{spec.num_heads // spec.num_kv_heads} heads share a key head, more than 64"
        return None

    def layout(
        self, spec: AttentionSpec, num_layers: int, page_size: int, dtype: torch.dtype, shard: tuple[int, int] = (0, 1)
    ) -> KVLayout:
        # A head's tokens side by side: a page of a head is one piece of memory.
        name = str(dtype).removeprefix("torch.")
        return KVLayout(page_size, num_layers, spec.num_kv_heads, spec.head_dim, name, "PHSD", shard)

    def plan(self, inputs: AttentionInputs, device: torch.device, layout: KVLayout | None) -> Plan:
        if device.type == "cpu" and not INTERPRETED:
            raise PluginError(
                "attention `triton` computes on GPUs, not on the cpu",
                fix="use `attention: sdpa`, or leave it to `auto`",
            )
        return WholePlan(inputs, device) if layout is None else CachedPlan(inputs, device, layout)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        spec: AttentionSpec,
        plan: Plan,  # type: ignore[override]  # a plan is opaque to all but the backend that made it
        cache: KVCache | None,
    ) -> Tensor:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ConfigError(
                "attention `triton` computes no gradients, and q, k or v of this layer require one",
                fix="train with `attention: sdpa`, or run under torch.no_grad()",
            )
        _check(spec, plan, q, k, v)
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        if isinstance(plan, WholePlan):
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
            if len(q):
                with on(q.device):
                    prefill(q, (k, v), None, out, spec, plan)
            return out
        cells, scales = _cells(plan, spec, cache)
        with on(q.device):
            if len(q):
                write(k, v, cells, scales, plan)
            return _over_cache(q, spec, plan, cells, scales)

    def attend_qkv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        norms: HeadNorms | None,
        spec: AttentionSpec,
        plan: Plan,  # type: ignore[override]
        cache: KVCache | None,
    ) -> Tensor | None:
        """Norm, rotation and the write to the cache are one kernel; where all sequences are decodes, attention is in it too.

        None without a cache, and where gradients are asked for.
        """
        if cache is None or isinstance(plan, WholePlan) or not _in_one_pass(qkv, cos, sin, spec):
            return None
        cells, scales = _cells(plan, spec, cache)
        with on(qkv.device):
            if plan.few and not plan.many:
                out = torch.empty(len(qkv), spec.num_heads, spec.head_dim, dtype=qkv.dtype, device=qkv.device)
                decode(qkv, cells, scales, out, spec, plan, (cos, sin, norms))
                return out
            q = prepare(qkv, cos, sin, norms, cells, scales, spec, plan) if len(qkv) else qkv[:, : spec.num_heads]
            return _over_cache(q, spec, plan, cells, scales)

    def attend_qkv_kept(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        norms: HeadNorms | None,
        spec: AttentionSpec,
        plan: Plan,  # type: ignore[override]
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Norm, rotation and the write to the cache are one kernel, which keeps the keys; values are a view of `qkv`."""
        if cache is None or isinstance(plan, WholePlan) or not (len(qkv) and _in_one_pass(qkv, cos, sin, spec)):
            return None
        cells, scales = _cells(plan, spec, cache)
        k = torch.empty(len(qkv), spec.num_kv_heads, spec.head_dim, dtype=qkv.dtype, device=qkv.device)
        with on(qkv.device):
            q = prepare(qkv, cos, sin, norms, cells, scales, spec, plan, k)
            return _over_cache(q, spec, plan, cells, scales), q, k, qkv[:, -spec.num_kv_heads :]


def _in_one_pass(qkv: Tensor, cos: Tensor, sin: Tensor, spec: AttentionSpec) -> bool:
    """Whether one kernel norms, turns and writes what the projection gave: heads lie side by side, and nobody asks for gradients."""
    if qkv.stride(-1) != 1 or qkv.stride(1) != spec.head_dim or (torch.is_grad_enabled() and qkv.requires_grad):
        return False
    return cos.stride(-1) == 1 and cos.stride(0) == cos.shape[-1] and sin.stride() == cos.stride()


def _over_cache(
    q: Tensor, spec: AttentionSpec, plan: CachedPlan, cells: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return [T, num_heads, head_dim], the new keys and values being in the cache."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if plan.few:
        decode(q, cells, scales, out, spec, plan)
    if plan.many:
        prefill(q, cells, scales, out, spec, plan)
    return out


def _cells(
    plan: CachedPlan, spec: AttentionSpec, cache: KVCache | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """Return keys and values of a layer's cache, and their scales if the layout has them. Raises ValueError when they are not so."""
    layout = plan.layout
    if cache is None:
        raise ValueError("a plan of a layout was made for a batch over a cache, and there is none")
    k, v = cache.k[spec.layer], cache.v[spec.layer]
    wanted = getattr(torch, layout.dtype)
    if k.dtype != wanted or wanted not in _CELLS or not (k.is_contiguous() and v.is_contiguous()):
        raise ValueError(
            f"the cache of layer {spec.layer} is of {k.dtype} with strides {k.stride()}; attention `triton` wants a contiguous one of "
            f"{layout.dtype}, which it must know: {', '.join(str(d).removeprefix('torch.') for d in _CELLS)}"
        )
    if (layout.num_kv_heads, layout.head_dim) != (spec.num_kv_heads, spec.head_dim):
        raise ValueError(
            f"the layer has {spec.num_kv_heads} key heads of {spec.head_dim}, the cache's layout {layout.num_kv_heads} of "
            f"{layout.head_dim}"
        )
    if not layout.scaled:
        return (k, v), None
    if cache.k_scale is None or cache.v_scale is None:
        raise ValueError(f"a cache of {layout.dtype} needs scales, this one has none")
    return (k, v), (cache.k_scale[spec.layer], cache.v_scale[spec.layer])


def _check(spec: AttentionSpec, plan: Plan, q: Tensor, k: Tensor, v: Tensor) -> None:
    kv_shape, rows = (spec.num_kv_heads, spec.head_dim), plan.num_tokens
    shape = (rows, spec.num_heads, spec.head_dim)
    if q.shape != shape or k.shape != (rows, *kv_shape) or v.shape != k.shape or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k and v are {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)} of {q.dtype}, {k.dtype} and {v.dtype}; the plan and "
            f"the layer want {shape} and {(rows, *kv_shape)} of one dtype"
        )
