"""A decoder with a head: what every causal language model shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pegboard.nn.attention import Attention
from pegboard.nn.embedding import Embedding
from pegboard.nn.head import Head
from pegboard.nn.layer import Layer
from pegboard.nn.linear import SharedStorage
from pegboard.nn.mlp import GatedMLP
from pegboard.nn.norm import RMSNorm
from pegboard.nn.rotary import Rotary
from pegboard.types import CacheSpec

if TYPE_CHECKING:
    from pegboard.types import AttentionSpec, ForwardContext


_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DecoderLayer(Layer):
    """Pre-norm block: x + attention(norm(x)), then + mlp(norm(·)). mlp_name: what checkpoints call the latter."""

    def __init__(
        self, attention: Attention, mlp: nn.Module, hidden_size: int, eps: float, *, mlp_name: str = "mlp"
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self._mlp_name = mlp_name
        self.add_module(mlp_name, mlp)
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, H] -> [T, H]."""
        attended = self.self_attn(self.input_layernorm(x), ctx)
        normed, x = self.post_attention_layernorm.add(attended, x)
        out: Tensor = x + getattr(self, self._mlp_name)(normed, ctx)
        return out

    def chained(self, x: Tensor, delta: Tensor | None, ctx: ForwardContext) -> tuple[Tensor, Tensor]:
        """As `forward` of x + delta, of which it returns the result as such a sum: each addition is one with the norm that follows it."""
        if delta is None:
            attended = self.self_attn(self.input_layernorm(x), ctx)
        else:
            attended, x = self.self_attn.behind(self.input_layernorm, delta, x, ctx)
        mlp = getattr(self, self._mlp_name)
        if isinstance(mlp, GatedMLP):
            out, x = mlp.behind(self.post_attention_layernorm, attended, x, ctx)
            return x, out
        normed, x = self.post_attention_layernorm.add(attended, x)
        return x, mlp(normed, ctx)


class Decoder(Layer):
    """Embedding, blocks and final norm, under the names that checkpoints give them."""

    def __init__(self, vocab_size: int, hidden_size: int, layers: Sequence[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class CausalLM(Layer):
    """A causal language model over flat token batches.

    max_positions: longest context that its positions were made for. rotaries: rotary tables, indexed by `Attention.rope`.
    embedding_scale: factor on the embeddings of ids, rounded to their dtype first. softcap: of the head's logits; see `Head`.
    adapter_targets: what the family says of adapters whose options name no layers (`ModelFamily.adapter_targets`); empty before.
    """

    adapter_targets: tuple[str, ...] = ()

    def __init__(
        self,
        decoder: Decoder,
        rotaries: Sequence[Rotary],
        *,
        tied: bool,
        max_positions: int,
        embedding_scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        vocab_size, hidden_size = decoder.embed_tokens.weight.shape
        self.model = decoder
        self.lm_head = Head(hidden_size, vocab_size, decoder.embed_tokens if tied else None, softcap=softcap)
        # Rounded here, since reading a tensor on the host is nothing that a captured step can do.
        self._scales = {dtype: torch.tensor(embedding_scale, dtype=dtype, device="cpu").item() for dtype in _DTYPES}
        self.score: Head | None = None
        self.rotaries = nn.ModuleList(rotaries)
        self.tied = tied
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.max_positions = max_positions

    @property
    def head(self) -> Head:
        """The output head: `model.head(hidden [M, H]) -> logits [M, V]`, or scores [M, labels] after `use_score`."""
        return self.lm_head if self.score is None else self.score

    def use_score(self, labels: int = 1) -> None:
        """Put a head of `labels` values a token in the place of the one over the vocabulary.

        It is called `score`, as in Hugging Face's sequence classifiers, and has a matrix of its own.
        """
        with torch.device(self.model.embed_tokens.weight.device):
            self.score = Head(self.hidden_size, labels)
        del self.lm_head
        self.tied = False

    @property
    def attentions(self) -> list[Attention]:
        """Attention layers, in order."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    @property
    def attention_specs(self) -> list[AttentionSpec]:
        """What each attention layer computes, in order."""
        return [attention.spec for attention in self.attentions]

    @property
    def rope_limit(self) -> int | None:
        """Tokens from which on a sequence has other angles, those of its first tokens included (`Rotary.limit`); None for no such.

        What a cache holds of a sequence that grows beyond must be computed again.
        """
        return next((rotary.limit for rotary in self.rotaries if rotary.limit is not None), None)  # type: ignore[return-value]

    def cache_spec(self, layer: int, dtype: torch.dtype) -> CacheSpec:
        """What attention layer `layer` must remember of past tokens."""
        spec = self.attention_specs[layer]
        kind = "full" if spec.window is None else "sliding"
        return CacheSpec(kind, spec.num_kv_heads, spec.head_dim, dtype, spec.window)  # type: ignore[arg-type]

    def embed(self, input_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """[T] ids -> [T, H], with the context's embedding spans laid over them."""
        embedding = self.model.embed_tokens
        # As for linear layers, an adapted one has a base and takes the context.
        x: Tensor = embedding(input_ids, ctx) if hasattr(embedding, "base") else embedding(input_ids)
        scale = self._scales[x.dtype]
        if scale != 1.0:
            x = x * scale
        for span in ctx.spans:
            x = x.slice_scatter(span.embeds.to(x.dtype), 0, span.start, span.start + span.embeds.shape[0])
        return x

    def forward(self, input_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """[T] ids -> hidden states after the final norm: [T, H], or [M, H] for `ctx.logits_indices`."""
        x = self.embed(input_ids, ctx)
        # Whoever runs steps over a cache knows how far positions go, and may have had their angles tabulated.
        ctx.rope = [
            (rotary if ctx.cache is None else rotary.look_up)(ctx.positions, x.dtype, ctx.extents)  # type: ignore[operator]
            for rotary in self.rotaries
        ]
        delta: Tensor | None = None
        if self._chains(cached=ctx.cache is not None):
            for layer in self.model.layers:
                x, delta = layer.chained(x, delta, ctx)  # type: ignore[operator]
        else:
            for layer in self.model.layers:
                x = layer(x, ctx)
        if self.region is not None:
            x, delta = x if delta is None else x + delta, None
            x = self.region.finish(x, ctx.positions.shape[-1])
        if ctx.logits_indices is not None:
            x = x.index_select(0, ctx.logits_indices)
            delta = None if delta is None else delta.index_select(0, ctx.logits_indices)
        out: Tensor = self.model.norm(x) if delta is None else self.model.norm.add(delta, x)[0]  # type: ignore[operator]
        return out

    def _chains(self, *, cached: bool) -> bool:
        """Whether each layer takes what the one before adds apart from what it is added to. Whoever hooks into layers gets whole ones;
        so does whoever replaced their forward pass for training, unless `chained` was replaced with it.
        """
        return isinstance(self.model.norm, RMSNorm) and all(
            type(layer) is DecoderLayer
            and not layer._forward_hooks
            and not layer._forward_pre_hooks
            and (cached or (("forward" in vars(layer)) == ("chained" in vars(layer)) and not layer._compiled_call_impl))
            for layer in self.model.layers
        )

    def fuse(self) -> None:
        """Give every group of layers that share an input one storage, where their kinds allow it. Values stay."""
        for module in self.modules():
            if isinstance(module, SharedStorage) and not module.fused:
                module.fuse()

    def refresh_derived(self, version: int) -> None:
        """Recompute, in place, every form of the weights that was made from them before `version`.

        Modules that hold such a form have a method `refresh(version)`; fused groups need none, being the same memory.
        """
        for module in self.modules():
            refresh = getattr(module, "refresh", None)
            if callable(refresh):
                refresh(version)
