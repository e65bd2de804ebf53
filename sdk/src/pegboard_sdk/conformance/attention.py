"""The suite of kind `attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.errors import PluginError
from pegboard.interfaces.attention import AttentionBackend
from pegboard.interfaces.platform import Platform
from pegboard.types import AttentionInputs, AttentionSpec, HeadNorms
from pegboard_sdk.conformance.batches import PagedBatch, random_qkv
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.suite import PluginSuite


@standard
class AttentionSuite(PluginSuite):
    """Every batch is compared with `pegboard.reference`, which attends head by head in float64.

    device, dtype: where, and in what, the backend is tested. tolerance: on outputs of order 1, absolute and relative.
    num_heads, num_kv_heads, head_dim, page_size: the shapes.
    grouped, sliding_window, softcap, bidirectional: what a layer may ask for; where the flag is False the backend must say so
    itself, through `unsupported`. unpaged, paged: with and without a cache. gradients: whether it can be trained through.
    """

    kind = "attention"
    device: ClassVar[str] = "cpu"
    dtype: ClassVar[torch.dtype] = torch.float32
    tolerance: ClassVar[float] = 2e-5
    num_heads: ClassVar[int] = 4
    num_kv_heads: ClassVar[int] = 2
    head_dim: ClassVar[int] = 16
    page_size: ClassVar[int] = 4

    grouped: ClassVar[bool] = True
    sliding_window: ClassVar[bool] = True
    softcap: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = True
    unpaged: ClassVar[bool] = True
    paged: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def platform(self) -> Platform | None:
        """Return the platform of `device` where it can capture graphs; override it to test capture."""
        return None

    def layer(self, **changes: Any) -> AttentionSpec:
        """Return the spec of layer 1 of a model of two, so that a backend that always uses layer 0 is found."""
        kv_heads = self.num_kv_heads if self.grouped else self.num_heads
        # The scale is no power of head_dim: nobody may assume head_dim ** -0.5.
        return replace(AttentionSpec(1, self.num_heads, kv_heads, self.head_dim, 0.31), **changes)

    def needs_layer(self, flag: str, spec: AttentionSpec) -> None:
        """Where `flag` is False: require that the backend refuses such a layer with a reason, then skip."""
        reason = self.create().unsupported(spec, self.dtype)
        if getattr(self, flag):
            assert reason is None, f"{flag} is True, but unsupported() says: {reason}"
            return
        assert isinstance(reason, str) and reason.strip(), f"{flag} is False, but unsupported() gives no reason"
        self.skip(f"{flag} is False: {reason}")

    def close(self, out: Tensor, wanted: Tensor) -> None:
        """Require dtype, shape and values."""
        assert out.dtype == self.dtype
        torch.testing.assert_close(out.double(), wanted.double(), rtol=self.tolerance, atol=self.tolerance)

    def check_whole(self, spec: AttentionSpec, lens: Sequence[int]) -> None:
        """Compare a batch of whole sequences without a cache."""
        self.needs("unpaged")
        backend: AttentionBackend = self.create()
        q, k, v = random_qkv(spec, sum(lens), self.dtype, torch.device(self.device), seed=sum(lens))
        before = [x.clone() for x in (q, k, v)]
        plan = backend.plan(AttentionInputs(list(lens), list(lens)), q.device, None)
        out = backend.attend(q, k, v, spec, plan, None)
        self.close(out, reference.ragged_attention(q, k, v, spec, lens))
        assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True)), "q, k or v was written to"

    def batch(self, spec: AttentionSpec, old: Sequence[int], new: Sequence[int], **more: Any) -> PagedBatch:
        """Return a batch over a cache in this backend's layout."""
        self.needs("paged")
        layout = self.create().layout(spec, 2, self.page_size, self.dtype)
        return PagedBatch(spec, layout, old, new, torch.device(self.device), **more)

    def check_paged(self, old: Sequence[int], new: Sequence[int], **changes: Any) -> None:
        """Compare a step over a cache, and what it leaves in the cache."""
        backend, batch = self.create(), self.batch(self.layer(**changes), old, new)
        wanted, cache = batch.expected(), batch.expected_cache()
        plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
        out = backend.attend(batch.q, batch.k, batch.v, batch.spec, plan, batch.cache)
        self.close(out, wanted)
        for name in ("k", "v"):
            for mine, right in zip(getattr(batch.cache, name), getattr(cache, name), strict=True):
                torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)

    def test_layout(self) -> None:
        """The layout is for what was asked: pages, layers, heads, dtype, shard; a backend without a cache refuses to have one."""
        assert self.create().paged == self.paged
        if not self.paged:
            with pytest.raises(PluginError, match="no cache"):
                self.create().layout(self.layer(), 3, 8, self.dtype)
            return
        layout = self.create().layout(self.layer(), 3, 8, self.dtype, (1, 2))
        assert (layout.page_size, layout.num_layers, layout.shard) == (8, 3, (1, 2))
        assert (layout.num_kv_heads, layout.head_dim) == (self.layer().num_kv_heads, self.head_dim)
        assert layout.order in ("PSHD", "PHSD")
        assert layout.page_bytes > 0

    def test_plain_layer_is_supported(self) -> None:
        """A causal layer with as many keys as queries is the least that a backend does."""
        assert self.create().unsupported(self.layer(num_kv_heads=self.num_heads), self.dtype) is None

    def test_causal(self) -> None:
        """A token sees itself and what comes before it."""
        self.check_whole(self.layer(num_kv_heads=self.num_heads), [9])

    def test_grouped_queries(self) -> None:
        """Query heads h, h + 1 … of a group share a key head."""
        spec = self.layer(num_kv_heads=self.num_kv_heads)
        self.needs_layer("grouped", spec)
        self.check_whole(spec, [9])

    def test_sliding_window(self) -> None:
        """A query sees itself and window - 1 tokens before it."""
        self.needs_layer("sliding_window", self.layer(window=3))
        for window in (1, 3, 50):
            self.check_whole(self.layer(window=window), [9, 2])

    def test_softcap(self) -> None:
        """Logits are capped by tanh before the softmax."""
        self.needs_layer("softcap", self.layer(softcap=0.7))
        self.check_whole(self.layer(softcap=0.7), [9])

    def test_bidirectional(self) -> None:
        """Without causality a token sees its whole sequence, and no other."""
        self.needs_layer("bidirectional", self.layer(causal=False))
        self.check_whole(self.layer(causal=False), [4, 7])

    def test_ragged_batch(self) -> None:
        """Sequences of many lengths laid end to end do not see each other."""
        self.check_whole(self.layer(), [5, 1, 33, 5, 17, 2])
        self.check_whole(self.layer(), [6, 6, 6])

    def test_parts_of_one_projection(self) -> None:
        """q, k and v may be parts of wider rows, as models have them: queries and keys of those that were turned, values of all."""
        backend, spec, lens = self.create(), self.layer(), [5, 1, 33]
        self.needs("unpaged")
        device = torch.device(self.device)
        drawn = random_qkv(spec, sum(lens), self.dtype, device, seed=11)
        plan = backend.plan(AttentionInputs(lens, lens), device, None)
        self.close(backend.attend(*_parts(*drawn), spec, plan, None), reference.ragged_attention(*drawn, spec, lens))

    def test_paged_parts_of_one_projection(self) -> None:
        """The same over a cache, prompts and decodes."""
        backend, batch = self.create(), self.batch(self.layer(), [9, 2, 0, 6], [1, 1, 12, 5])
        wanted = batch.expected()
        plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
        self.close(backend.attend(*_parts(batch.q, batch.k, batch.v), batch.spec, plan, batch.cache), wanted)

    def test_gradients(self) -> None:
        """Gradients in q, k and v equal those of the reference by autograd."""
        self.needs("unpaged")
        self.needs("gradients")
        backend, spec, lens = self.create(), self.layer(), [5, 1, 9]
        q, k, v = (x.requires_grad_() for x in random_qkv(spec, 15, self.dtype, torch.device(self.device), seed=3))
        upstream = random_qkv(spec, 15, self.dtype, q.device, seed=4)[0]
        plan = backend.plan(AttentionInputs(lens, lens), q.device, None)
        got = torch.autograd.grad(backend.attend(q, k, v, spec, plan, None), (q, k, v), upstream)
        wanted = torch.autograd.grad(reference.ragged_attention(q, k, v, spec, lens), (q, k, v), upstream.double())
        for a, b in zip(got, wanted, strict=True):
            self.close(a, b)

    def test_plan_is_refilled(self) -> None:
        """`update_` makes a plan of whole sequences one for another batch."""
        self.needs("unpaged")
        backend, spec, device = self.create(), self.layer(), torch.device(self.device)
        plan = backend.plan(AttentionInputs([3, 8], [3, 8]), device, None)
        plan.update_(AttentionInputs([7, 4], [7, 4]))
        q, k, v = random_qkv(spec, 11, self.dtype, device, seed=5)
        self.close(backend.attend(q, k, v, spec, plan, None), reference.ragged_attention(q, k, v, spec, [7, 4]))

    def test_paged_prefill(self) -> None:
        """Whole prompts are attended and written, through pages in any order, one of them just filled."""
        self.check_paged([0, 0, 0], [10, 3, self.page_size])

    def test_chunked_prefill(self) -> None:
        """Further tokens of a prompt see the cached ones, wherever the chunk begins in a page."""
        self.check_paged([5, self.page_size, 3], [6, 3, 2])

    def test_paged_decode(self) -> None:
        """One new token each, also the first of a sequence and the last that fits into a page."""
        self.check_paged([0, 12, 7, 1], [1, 1, 1, 1])

    def test_mixed_batch(self) -> None:
        """Decodes first, then a whole prompt and a chunk, in one step."""
        self.check_paged([9, 2, 0, 6], [1, 1, 7, 5])

    def test_paged_sliding_window(self) -> None:
        """The window counts tokens of the sequence, cached ones too, in prefill, chunk and decode."""
        self.needs_layer("sliding_window", self.layer(window=3))
        for window in (1, 3, 6, 50):
            self.check_paged([9, 2, 0, 6], [1, 1, 7, 5], window=window)

    def test_paged_softcap(self) -> None:
        """The cap holds over a cache too."""
        self.needs_layer("softcap", self.layer(softcap=0.7))
        self.check_paged([9, 0, 6], [1, 7, 5], softcap=0.7)

    def test_one_call_from_the_projection(self) -> None:
        """`attend_qkv`, where it is offered, norms, turns, writes and attends; with norms whose weights count from 0 or 1 and without."""
        backend = self.create()
        for offset in (None, 0.0, 1.0):
            batch = self.batch(self.layer(), [9, 2, 0], [1, 1, 7])
            heads, kv_heads = batch.spec.num_heads, batch.spec.num_kv_heads
            qkv = torch.cat((batch.q, batch.k, batch.v), 1)
            draw = torch.Generator().manual_seed(9)
            # The first half of a head's dimensions is turned, or all of them.
            angles = torch.rand(len(qkv), 1, self.head_dim // (4 if offset is None else 2), generator=draw)
            cos, sin = angles.cos(), angles.sin()
            turned = [torch.cat(pair, -1).to(qkv) for pair in ((cos, cos), (-sin, sin))]
            weights = torch.rand(2, self.head_dim, generator=draw).to(qkv)
            norms = None if offset is None else HeadNorms(weights[0], weights[1], 1e-5, offset)
            plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
            kept = qkv.clone()
            out = backend.attend_qkv(qkv, turned[0], turned[1], norms, batch.spec, plan, batch.cache)
            if out is None:
                self.skip("attend_qkv gives None")
            q, k, v = (x.double() for x in qkv.split([heads, kv_heads, kv_heads], 1))
            if norms is not None:
                norm = reference.OPS["offset_rms_norm" if norms.offset else "rms_norm"]
                q, k = norm(q, norms.q.double(), norms.eps), norm(k, norms.k.double(), norms.eps)
            # The cache was written to: a batch of the same seed has the one before the step.
            before = self.batch(self.layer(), [9, 2, 0], [1, 1, 7])
            before.q, before.k = (
                reference.OPS["rotary"](x, *(t.double() for t in turned)).to(self.dtype) for x in (q, k)
            )
            before.v = v
            self.close(out, before.expected())
            assert torch.equal(qkv, kept), "qkv was written to"

    def test_later_layers_have_a_cache_of_their_own(self) -> None:
        """One plan serves all layers, each over its own tensors."""
        backend, second = self.create(), self.batch(self.layer(), [5, 0], [1, 6])
        first = self.batch(self.layer(layer=0), [5, 0], [1, 6])  # of the same pages, being of the same seed
        first.k, first.v = first.k.neg(), first.v.neg()
        cache = second.cache
        cache.k[0], cache.v[0] = first.cache.k[0].neg(), first.cache.v[0].neg()
        first.cache = cache
        plan = backend.plan(second.inputs, second.q.device, second.layout)
        wanted = [batch.expected() for batch in (first, second)]
        for batch, right in zip((first, second), wanted, strict=True):
            self.close(backend.attend(batch.q, batch.k, batch.v, batch.spec, plan, cache), right)

    def test_pages_of_others_never_leak(self) -> None:
        """What a page held before its present owner, NaN included, never reaches an output, nor does a free page."""
        backend = self.create()
        for old, new in (([3, 10], [1, 1]), ([0, 5], [3, 6])):
            batch = self.batch(self.layer(), old, new, pages=12)
            plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
            out = backend.attend(batch.q, batch.k, batch.v, batch.spec, plan, batch.cache)
            assert out.isfinite().all(), (
                f"the step with {old} cached and {new} new tokens read a place that is not its own"
            )

    def static(self, old: Sequence[int], **more: Any) -> PagedBatch:
        """Return a decode batch of a static shape: five rows of up to five pages."""
        if self.create().graph_safe == "none":
            self.skip("graph_safe is 'none'")
        return self.batch(more.pop("spec", self.layer()), old, [1] * len(old), pad_to=5, pad_pages=5, **more)

    def test_static_plan(self) -> None:
        """A padded decode batch gives its sequences what they get without padding; padded rows touch page 0 alone."""
        batch, backend = self.static([0, 7, 15]), self.create()
        wanted, cache = batch.expected(), batch.expected_cache()
        plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
        out = backend.attend(*batch.padded(1.0), batch.spec, plan, batch.cache)
        assert out.shape == (5, self.num_heads, self.head_dim)
        self.close(out[:3], wanted)
        for mine, right in zip((*batch.cache.k, *batch.cache.v), (*cache.k, *cache.v), strict=True):
            torch.testing.assert_close(mine[1:], right[1:], rtol=0, atol=0, equal_nan=True)

    def test_static_plan_is_refilled(self) -> None:
        """`update_` makes a static plan one for another batch of other lengths, pages and number of sequences."""
        first, backend = self.static([4, 9]), self.create()
        plan = backend.plan(first.inputs, first.q.device, first.layout)
        for seed, old in enumerate(([15], [1, 2, 3, 4, 8], [0, 11, 6])):
            batch = self.static(old, seed=seed)
            wanted = batch.expected()
            plan.update_(batch.inputs)
            out = backend.attend(*batch.padded(), batch.spec, plan, batch.cache)
            self.close(out[: len(old)], wanted)

    def test_static_plan_of_several_tokens(self) -> None:
        """One for up to `static_queries` new tokens a sequence gives each what it gets without padding, whatever the batch consists of."""
        most = min(self.create().static_queries, 4)
        if self.create().graph_safe == "none" or most == 1:
            self.skip("static_queries is 1")
        backend, plan = self.create(), None
        for seed, (old, new) in enumerate([([3, 0, 9], [1, 2, most]), ([7, 5], [most, 1]), ([2] * 8, [1] * 8)]):
            batch = self.batch(self.layer(), old, new, pad_to=8, pad_pages=5, pad_queries=most, seed=seed)
            wanted, cache = batch.expected(), batch.expected_cache()
            if plan is None:
                plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
            else:
                plan.update_(batch.inputs)
            out = backend.attend(*batch.padded(1.0), batch.spec, plan, batch.cache)
            self.close(out[: sum(new)], wanted)
            for mine, right in zip((*batch.cache.k, *batch.cache.v), (*cache.k, *cache.v), strict=True):
                torch.testing.assert_close(mine[1:], right[1:], rtol=0, atol=0, equal_nan=True)

    def test_static_sliding_window(self) -> None:
        """A static plan knows the window of the layer that uses it."""
        self.needs_layer("sliding_window", self.layer(window=3))
        batch, backend = self.static([1, 7, 12], spec=self.layer(window=3)), self.create()
        wanted = batch.expected()
        plan = backend.plan(batch.inputs, batch.q.device, batch.layout)
        self.close(backend.attend(*batch.padded(), batch.spec, plan, batch.cache)[:3], wanted)

    def test_captured_graph_sees_a_refilled_plan(self) -> None:
        """A captured decode step, replayed after `update_`, computes the new batch."""
        first, backend, platform = self.static([4, 9]), self.create(), self.platform()
        if platform is None or "graphs" not in platform.capabilities():
            self.skip("no platform that captures graphs")
        plan = backend.plan(first.inputs, first.q.device, first.layout)
        buffers, cache, spec = first.padded(), first.cache, first.spec
        out = torch.empty_like(buffers[0])

        def step() -> None:
            out.copy_(backend.attend(*buffers, spec, plan, cache))

        graph = platform.capture(step)
        for seed, old in enumerate(([15], [1, 2, 3, 4, 8])):
            batch = self.static(old, seed=seed)
            wanted = batch.expected()
            plan.update_(batch.inputs)
            sources = (*batch.padded(), *batch.cache.k, *batch.cache.v)
            for target, source in zip((*buffers, *cache.k, *cache.v), sources, strict=True):
                target.copy_(source)
            graph.replay()
            platform.synchronize()
            self.close(out[: len(old)], wanted)


def _parts(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same values: q and k as parts of one tensor, v as a part of a wider one."""
    heads, kv_heads = q.shape[1], k.shape[1]
    q_part, k_part = torch.cat((q, k), 1).split([heads, kv_heads], 1)
    return q_part, k_part, torch.cat((q, k, v), 1)[:, heads + kv_heads :]
