"""Attention backends that are broken, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from pegboard import ops
from pegboard.plugins.spec import PluginSpec
from pegboard.types import AttentionInputs, KVCache
from pegboard_sdk.conformance import AttentionSuite
from pegboard_sdk.toys.attention import ReferenceAttention, ReferencePlan, write
from pegboard_sdk.toys.platform import HostPlatform


class Again:
    """What the host can do for a captured graph: the work itself."""

    def __init__(self, work):
        self.replay = work


class GraphPlatform(HostPlatform):
    def capabilities(self, index=0):
        return frozenset({"graphs"})

    def capture(self, work, index=0, memory=None):
        work()
        return Again(work)


class Static(ReferenceAttention):
    """The reference with static decode plans: rows without a sequence get zeros and write page 0."""

    graph_safe = "decode"
    static_queries = 3

    def attend(self, q, k, v, spec, plan, cache):
        count = sum(plan.inputs.query_lens)
        out = super().attend(q[:count], k[:count], v[:count], spec, plan, cache)
        if plan.inputs.pad_to is None:
            return out
        return torch.cat((out, torch.zeros_like(q[count:])))


class Mutant(AttentionSuite):
    __test__ = False
    spec = PluginSpec(kind="attention", target="pegboard_sdk.toys.attention:ReferenceAttention")
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[ReferenceAttention]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> ReferenceAttention:
        return self.broken()

    def platform(self):
        return GraphPlatform()


class TestSound(Mutant):
    broken = Static


class Changed(Static):
    """Computes another layer than it is asked for: `change(spec, cache, plan)`."""

    def attend(self, q, k, v, spec, plan, cache):
        return super().attend(q, k, v, self.change(spec, cache, plan), plan, cache)


class TestOwnScale(Mutant):
    caught_by = ("test_causal", "test_paged_prefill")

    class broken(Changed):
        def change(self, spec, cache, plan):
            return replace(spec, scale=spec.head_dim**-0.5)


class TestSeesTheFuture(Mutant):
    caught_by = ("test_causal", "test_ragged_batch", "test_paged_prefill", "test_chunked_prefill", "test_mixed_batch")

    class broken(Changed):
        def change(self, spec, cache, plan):
            return replace(spec, causal=False)


class TestNeverBidirectional(Mutant):
    caught_by = ("test_bidirectional",)

    class broken(Changed):
        def change(self, spec, cache, plan):
            return replace(spec, causal=True)


class TestWindowOffByOne(Mutant):
    caught_by = ("test_sliding_window", "test_paged_sliding_window", "test_static_sliding_window")

    class broken(Changed):
        def change(self, spec, cache, plan):
            return spec if spec.window is None else replace(spec, window=spec.window + 1)


class TestNoWindowOverACache(Mutant):
    caught_by = ("test_paged_sliding_window", "test_static_sliding_window")

    class broken(Changed):
        def change(self, spec, cache, plan):
            return spec if cache is None else replace(spec, window=None)


class TestNoSoftcap(Mutant):
    caught_by = ("test_softcap", "test_paged_softcap")

    class broken(Changed):
        def change(self, spec, cache, plan):
            return replace(spec, softcap=None)


class TestReadsValuesAsKeysLie(Mutant):
    caught_by = ("test_parts_of_one_projection", "test_paged_parts_of_one_projection")

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            return super().attend(q, k, v.as_strided(v.shape, k.stride()), spec, plan, cache)


class TestRefusesInSilence(Mutant):
    """The flag is False and `unsupported` does not say so."""

    caught_by = ("test_softcap", "test_bidirectional", "test_sliding_window", "test_grouped_queries")
    softcap = bidirectional = sliding_window = grouped = False
    broken = ReferenceAttention


class TestRefusesEverything(Mutant):
    caught_by = ("test_plain_layer_is_supported", "test_softcap")

    class broken(Static):
        def unsupported(self, spec, dtype):
            return "not today"


class TestInterleavesHeads(Mutant):
    caught_by = ("test_grouped_queries",)

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            order = torch.arange(spec.num_heads).view(spec.num_kv_heads, -1).t().flatten()
            out = super().attend(q[:, order], k, v, spec, plan, cache)
            return out[:, order.argsort()]


class TestOneLongSequence(Mutant):
    caught_by = ("test_ragged_batch",)

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            if cache is None:
                plan = ReferencePlan(AttentionInputs([len(q)], [len(q)]))
            return super().attend(q, k, v, spec, plan, cache)


class TestWritesToItsInputs(Mutant):
    caught_by = ("test_causal",)

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            out = super().attend(q, k, v, spec, plan, cache)
            q.mul_(spec.scale)
            return out


class TestHoldsKeysConstant(Mutant):
    caught_by = ("test_gradients",)

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            return super().attend(q, k.detach() + 0 * k, v, spec, plan, cache)


class StalePlan(ReferencePlan):
    def update_(self, inputs):
        pass


class TestNeverRefills(Mutant):
    caught_by = ("test_plan_is_refilled", "test_static_plan_is_refilled", "test_captured_graph_sees_a_refilled_plan")

    class broken(Static):
        def plan(self, inputs, device, layout):
            return StalePlan(inputs)


class TestForgetsThePast(Mutant):
    caught_by = ("test_chunked_prefill", "test_paged_decode", "test_mixed_batch")

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            out = super().attend(q, k, v, spec, plan, cache)
            lens = plan.inputs.query_lens
            return (
                out
                if cache is None
                else super().attend(q, k, v, spec, ReferencePlan(AttentionInputs(lens, lens)), None)
            )


class TestNeverWrites(Mutant):
    caught_by = ("test_paged_prefill", "test_paged_decode", "test_static_plan")

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            if cache is not None:
                cache = KVCache(cache.layout, [x.clone() for x in cache.k], [x.clone() for x in cache.v])
            return super().attend(q, k, v, spec, plan, cache)


class TestWritesPagesFromTheirStart(Mutant):
    caught_by = ("test_chunked_prefill", "test_mixed_batch")

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            if cache is not None and max(plan.inputs.query_lens) > 1:
                inputs = plan.inputs
                write(k, v, spec.layer, replace(inputs, slot_mapping=inputs.slot_mapping // 4 * 4), cache)
            return super().attend(q, k, v, spec, plan, cache)


class TestOneCacheForAll(Mutant):
    caught_by = ("test_later_layers_have_a_cache_of_their_own",)

    class broken(Changed):
        def change(self, spec, cache, plan):
            return replace(spec, layer=1)


class TestReadsWholePages(Mutant):
    """With weight zero, which does not silence NaN."""

    caught_by = ("test_pages_of_others_never_leak", "test_static_plan")

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            out = super().attend(q, k, v, spec, plan, cache)
            if cache is None:
                return out
            pages = [page for row in plan.inputs.block_table for page in row]
            return out + 0 * cache.v[spec.layer][pages].sum()


class TestOtherLayout(Mutant):
    caught_by = ("test_layout",)

    class broken(Static):
        def layout(self, spec, num_layers, page_size, dtype, shard=(0, 1)):
            return super().layout(spec, num_layers, page_size, dtype)


class TestDropsPadding(Mutant):
    caught_by = ("test_static_plan",)

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            return super().attend(q, k, v, spec, plan, cache)[: sum(plan.inputs.query_lens)]


class TestPaddingWritesElsewhere(Mutant):
    caught_by = ("test_static_plan",)

    class broken(Static):
        def attend(self, q, k, v, spec, plan, cache):
            if plan.inputs.pad_to is not None:
                cache.k[spec.layer][1] = 0
            return super().attend(q, k, v, spec, plan, cache)


class TestSeveralTokensAreOne(Mutant):
    caught_by = ("test_static_plan_of_several_tokens",)

    class broken(Static):
        """Of a sequence's new tokens in a static plan, all see what the last one sees."""

        def attend(self, q, k, v, spec, plan, cache):
            out = super().attend(q, k, v, spec, plan, cache)
            if plan.inputs.pad_queries > 1:
                last = torch.tensor(plan.inputs.query_lens).cumsum(0) - 1
                out[: int(last[-1]) + 1] = out[last.repeat_interleave(torch.tensor(plan.inputs.query_lens))]
            return out


class TestForgetsNorms(Mutant):
    caught_by = ("test_one_call_from_the_projection",)

    class broken(Static):
        def attend_qkv(self, qkv, cos, sin, norms, spec, plan, cache):
            q, k, v = qkv.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
            return self.attend(ops.rotary(q, cos, sin), ops.rotary(k, cos, sin), v, spec, plan, cache)
