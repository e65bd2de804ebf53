"""Attention one query and one head at a time, over pages whose heads come first."""

import torch

from pegboard.interfaces.attention import AttentionBackend
from pegboard.types import KVLayout


class Plan:
    """The batch."""

    def __init__(self, inputs):
        self.inputs = inputs

    def update_(self, inputs):
        self.inputs = inputs


class Loops(AttentionBackend):
    """Causal attention without windows."""

    def unsupported(self, spec, dtype):
        return None if spec.window is None and spec.softcap is None else "windows and caps are beyond it"

    def layout(self, spec, num_layers, page_size, dtype, shard=(0, 1)):
        return KVLayout(
            page_size, num_layers, spec.num_kv_heads, spec.head_dim, str(dtype).split(".")[1], order="PHSD", shard=shard
        )

    def plan(self, inputs, device, layout):
        return Plan(inputs)

    def attend(self, q, k, v, spec, plan, cache):
        inputs, rows, start = plan.inputs, [], 0
        for number, (new, length) in enumerate(zip(inputs.query_lens, inputs.seq_lens, strict=True)):
            mine = slice(start, start + new)
            keys, values = k[mine], v[mine]
            if cache is not None:
                keys, values = self._through(cache, spec, inputs, number, mine, keys, values, length)
            for row in range(new):
                rows.append(self._query(q[start + row], keys, values, spec, length - new + row + 1))
            start += new
        return torch.stack(rows)

    def _query(self, q, keys, values, spec, seen):
        share = spec.num_heads // spec.num_kv_heads
        heads = []
        for head in range(spec.num_heads):
            weights = ((keys[:seen, head // share] @ q[head]) * spec.scale).softmax(0)
            heads.append(weights @ values[:seen, head // share])
        return torch.stack(heads)

    def _through(self, cache, spec, inputs, number, mine, keys, values, length):
        size, pages = cache.layout.page_size, inputs.block_table[number]
        k, v = cache.k[spec.layer], cache.v[spec.layer]
        for slot, key, value in zip(inputs.slot_mapping[mine].tolist(), keys, values, strict=True):
            k[slot // size, :, slot % size] = key
            v[slot // size, :, slot % size] = value
        where = [(pages[token // size], token % size) for token in range(length)]
        return torch.stack([k[p, :, s] for p, s in where]), torch.stack([v[p, :, s] for p, s in where])
