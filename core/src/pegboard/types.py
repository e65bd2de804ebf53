"""Value types that cross rooms. Each is passed as an argument; none is reachable through a module-level variable.

Shapes: T tokens of a ragged batch laid end to end, N sequences, H hidden size, L layers, P pages, S slots of a page.
Token-major layout everywhere: a training batch and a serving step are the same flat `[T]`, told apart only by the attention plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


CacheKind = Literal["full", "sliding", "latent", "state"]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one attention layer computes; constant over the life of the model.

    layer: index of the layer, which is also the index of its cache tensors.
    num_heads, num_kv_heads, head_dim: local to this shard; num_heads % num_kv_heads == 0.
    scale: factor on q·k, usually head_dim ** -0.5.
    window: a query sees itself and the `window - 1` tokens before it; None for all.
    softcap: logits become softcap * tanh(logits / softcap); None for none.
    group: index of the cache group whose plan this layer uses (layers with the same cache needs share a group).
    causal: a token sees only itself and what comes before it.
    """

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    group: int = 0
    causal: bool = True


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms over each head of queries and keys, before they are turned: x / sqrt(mean(x^2) + eps) * (offset + weight).

    q, k: [head_dim] weights. offset: added to them, 0 or 1.
    """

    q: Tensor
    k: Tensor
    eps: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a layer must remember of past tokens.

    kind: "full" keeps all tokens, "sliding" the last `window`, "latent" one compressed row a token, "state" a fixed-size state.
    """

    kind: CacheKind
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Layout of a paged cache, a value that two parties compare before pages change hands.

    The tensors of layer i are `k[i]`, `v[i]` of shape given by `order`:
    "PSHD" is [num_pages, page_size, num_kv_heads, head_dim], "PHSD" is [num_pages, num_kv_heads, page_size, head_dim].
    dtype is torch's name without the prefix ("bfloat16"); shard = (rank, world) of the heads.
    Of dtype "int8" and "float8_e4m3fn" each row of head_dim values has a float32 scale, by which they are multiplied: `k_scale[i]`,
    `v_scale[i]`, of the same shape without head_dim. The row's greatest magnitude is 127, or 448.
    """

    page_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    order: str = "PSHD"
    shard: tuple[int, int] = (0, 1)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values together."""
        import torch

        item: int = getattr(torch, self.dtype).itemsize
        row = self.head_dim * item + (4 if self.scaled else 0)
        return 2 * self.num_layers * self.page_size * self.num_kv_heads * row

    @property
    def scaled(self) -> bool:
        """Whether each row of values has a scale."""
        return self.dtype in ("int8", "float8_e4m3fn")

    def shape(self, num_pages: int) -> tuple[int, int, int, int]:
        """Return the shape of a layer's keys, or values, of so many pages."""
        sizes = {"P": num_pages, "S": self.page_size, "H": self.num_kv_heads, "D": self.head_dim}
        pages, outer, inner, dim = (sizes[axis] for axis in self.order)
        return pages, outer, inner, dim


@dataclass(slots=True)
class KVCache:
    """Cache tensors, one per layer, all of `layout`. Owned by the runner; attention backends write into them in place.

    Page 0 is never handed out: padded rows of a captured graph write their keys there.
    k_scale, v_scale: where the layout is `scaled`, one float32 tensor a layer; None elsewhere.
    """

    layout: KVLayout
    k: list[Tensor]
    v: list[Tensor]
    k_scale: list[Tensor] | None = None
    v_scale: list[Tensor] | None = None

    @classmethod
    def allocate(cls, layout: KVLayout, num_pages: int, device: torch.device) -> KVCache:
        """Return a cache of zeros: a masked read of garbage that happens to be NaN would spread.

        On the host a page takes memory when it is first written.
        """
        import torch

        shape, dtype = layout.shape(num_pages), getattr(torch, layout.dtype)

        def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
            if device.type == "cpu":
                from pegboard.host import host_zeros

                return [host_zeros(shape, dtype) for _ in range(layout.num_layers)]
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layout.num_layers)]

        scales = [tensors(shape[:-1], torch.float32) if layout.scaled else None for _ in "kv"]
        return cls(layout, tensors(shape, dtype), tensors(shape, dtype), *scales)

    @property
    def num_pages(self) -> int:
        """Pages, the reserved page 0 included."""
        return self.k[0].shape[0]


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What an executor allocates beside the weights.

    num_pages: pages of `layout`, the reserved page 0 included. num_slots: sequences at once. max_pages: pages of one sequence.
    max_adapters: adapters that may be loaded at once, beside the model; max_adapter_rank: the highest rank of any of them.
    graphs: whether decode steps may be captured, where platform and attention can.
    count_experts: whether the tokens of each expert of a mixture are counted.
    most_queries: most new tokens of a sequence in a step that is worth capturing; above 1 where proposed tokens are checked.
    """

    layout: KVLayout
    num_pages: int
    num_slots: int
    max_pages: int
    max_adapters: int = 0
    max_adapter_rank: int = 0
    graphs: bool = True
    count_experts: bool = False
    most_queries: int = 1


@dataclass(slots=True)
class AttentionInputs:
    """What a plan is made from: the shape of one ragged batch.

    Host values are the truth (no device sync is needed to plan); a backend copies what it needs to the device.
    query_lens: [N] new tokens of each sequence, so T = sum(query_lens); a list or an int32 numpy array, as seq_lens is.
    seq_lens: [N] tokens of each sequence after this step (cached + new); equal to query_lens in training.
    block_table: rows of page numbers, page j of a row holds tokens j * page_size …: [N] lists, or an int32 host tensor [S, W] of
    which only the first pages of a row count, as many as its tokens need; None without a cache.
    table_rows: [N] the row of block_table of each sequence, int32 where it is an array; None when row i is sequence i's.
    slot_mapping: [T] position of each new token in the cache, page * page_size + offset; None without a cache. A token whose
    position lies in page 0 while one of its sequence's pages covers it is in the cache already: its key is read from there.
    num_decodes: the first `num_decodes` sequences have one new token each.
    pad_to, pad_pages: tokens of a static (captured) batch, and pages of each sequence; None for a batch planned for itself.
    pad_queries: most new tokens of a sequence of a static batch, at most the backend's `static_queries`.
    device_table: where block_table is a tensor, the same on the device, int32 and contiguous, whose last row is no sequence's and holds
    page 0 alone; whoever keeps it there changes it in place, before the step that needs the change, so that a plan may read from it
    for as long as it lives. None: a plan copies what it needs.
    apart: sequences that somebody else attends for. Their keys and values are written; their rows of the result may hold anything.
    """

    query_lens: Sequence[int]
    seq_lens: Sequence[int]
    block_table: Sequence[Sequence[int]] | Tensor | None = None
    slot_mapping: Tensor | None = None
    num_decodes: int = 0
    pad_to: int | None = None
    pad_pages: int | None = None
    table_rows: Sequence[int] | None = None
    device_table: Tensor | None = None
    pad_queries: int = 1
    apart: Sequence[int] = ()

    @property
    def num_tokens(self) -> int:
        """T, new tokens of the whole batch."""
        return int(sum(self.query_lens))

    def pages(self, index: int, page_size: int) -> list[int]:
        """Return the pages that hold the tokens of sequence `index`."""
        if self.block_table is None:
            raise ValueError("a batch without a cache has no pages")
        row = self.block_table[index if self.table_rows is None else int(self.table_rows[index])]
        used = row[: -(-int(self.seq_lens[index]) // page_size)]
        return used.tolist() if hasattr(used, "tolist") else list(used)


class AttentionPlan(Protocol):
    """Opaque to models: whatever a backend needs to attend over one batch, made once and used by every layer."""

    def update_(self, inputs: AttentionInputs) -> None:
        """Refill the plan's buffers in place for another batch of the same static shape (captured graphs stay valid)."""


@dataclass(frozen=True, slots=True)
class EmbeddingSpan:
    """Rows of the input that are embeddings from elsewhere (an image, say): rows start … start + len(embeds) of the flat batch."""

    start: int
    embeds: Tensor


@dataclass(slots=True)
class ForwardContext:
    """Everything that a forward pass needs beside its hidden states; every layer is called as `layer(x, ctx)`.

    positions: [T] int64, or [3, T] for families with three-axis rotary positions.
    plans: one attention plan per cache group.
    cache: the paged cache, or None (training, scoring).
    adapter_slots: [T] int64 on the host, which loaded adapter each row uses (-1: none); None when all rows use the model as built.
    adapter_rows: [T] int64, the same where the model is. It alone is there in work that is captured, which serves other rows later.
    adapter_plans: what the owner of the slots made of them, by owner, so that it is made once a pass and not in every layer.
    logits_indices: [M] int64 rows whose logits are wanted; None for all.
    spans: rows whose input embeddings come from outside.
    extents: [T] int64, for rotary tables whose angles depend on it: how many tokens each row's sequence has, or may come to have;
        None: as many as the greatest position says.
    rope: (cos, sin) pairs, each [T, 1, rotary_dim] and sin with its first half negated, one per rotary table of the model;
        set by the model before its first layer.
    """

    positions: Tensor
    plans: Sequence[AttentionPlan]
    cache: KVCache | None = None
    adapter_slots: Tensor | None = None
    adapter_rows: Tensor | None = None
    logits_indices: Tensor | None = None
    spans: Sequence[EmbeddingSpan] = ()
    extents: Tensor | None = None
    rope: Sequence[tuple[Tensor, Tensor]] = ()
    adapter_plans: dict[Any, Any] = field(default_factory=dict)


ParallelStyle = Literal["column", "row", "vocab", "expert", "replicate"]


@dataclass(frozen=True, slots=True)
class ParallelRule:
    """How parameters whose name matches `pattern` (fnmatch) split over a tensor-parallel group.

    style: "expert" is not about that group: matching parameters, of whole experts, may go to the ranks of an expert-parallel one. A
        tensor-parallel group passes the rule by, so that a plan can say both of the same parameters.
    unit: rows (or columns) that must stay together, such as head_dim for attention projections.
    parts: sizes of the blocks of rows that follow one another in a parameter, each of which splits by itself (q, k and v of one
        fused layer); empty for one block. Who cannot split so must refuse the rule by name.
    """

    pattern: str
    style: ParallelStyle
    unit: int = 1
    parts: tuple[int, ...] = ()


@dataclass(slots=True)
class Row:
    """One tokenized sequence.

    input_ids: token ids of the whole sequence.
    mask: True where the token is to be predicted (its own loss counts); same length. mask[0] is ignored: nothing predicts the first token.
    extras: what an objective needs beside them, one value for the sequence.
    part: what the sequence is in an example of several, such as "chosen" or "rejected"; may be empty in an example of one.
        A "prompt" is to be answered: there is nothing to learn in it.
    per_token: numbers by name, one for each token, such as the log-probabilities at which it was sampled; same length as input_ids.
    """

    input_ids: list[int]
    mask: list[bool]
    extras: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""
    per_token: Mapping[str, Sequence[float]] = field(default_factory=dict)


Example = tuple[Row, ...]
"""Sequences that stay together: they are kept or left out as one, and lie side by side in one batch, in this order."""


@dataclass(slots=True)
class Batch:
    """A packed training batch: N sequences laid end to end, of E examples.

    input_ids: [T] int64. positions: [T] int64, restarting at each sequence.
    targets: [T] int64, targets[t] is the id that row t must predict, or -100 where no loss counts (the last row of a sequence always).
    seq_lens: [N] lengths on the host, sum == T.
    target_rows: [M] int64, the rows whose targets are not -100, found on the host while packing so that no device has to count.
    extras: what an objective needs beside them, by name. Of a sequence's `Row.extras`: a tensor [N] where all values are numbers
        (bool, int64 or float32), a list [N] where they are anything else (None for a sequence without it). Of `Row.per_token`: a
        float32 tensor [T] aligned with `targets`, so that entry t is about the token that row t predicts (0 in a sequence's last row).
    parts: `Row.part` -> [P] int64, the sequences that are that part, in order. Where every example has one of each part,
        parts["chosen"][i] and parts["rejected"][i] are of the same example.
    sequence_ids: [T] int64, the sequence of each row. Given by `seq_lens` when left out.
    example_ids: [N] int64, the example of each sequence, from 0 and ascending. Left out: each sequence is one.
    target_lens: [N] on the host, how many of `target_rows` each sequence has. Counted when left out.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    seq_lens: list[int]
    target_rows: Tensor
    extras: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)
    sequence_ids: Tensor = None  # type: ignore[assignment]
    example_ids: Tensor = None  # type: ignore[assignment]
    target_lens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        numbers = torch.arange(len(self.seq_lens))
        lengths = torch.tensor(self.seq_lens, dtype=torch.int64)
        if len(self.target_lens) != len(self.seq_lens):
            ends = torch.searchsorted(self.target_rows.cpu(), lengths.cumsum(0))
            self.target_lens = ends.diff(prepend=ends.new_zeros(1)).tolist()
        for name, implied in (("sequence_ids", numbers.repeat_interleave(lengths)), ("example_ids", numbers)):
            if getattr(self, name) is None:
                setattr(self, name, implied.to(self.input_ids.device))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        import torch

        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return Batch(
            moved(self.input_ids),
            moved(self.positions),
            moved(self.targets),
            self.seq_lens,
            moved(self.target_rows),
            {name: moved(value) for name, value in self.extras.items()},
            {name: moved(value) for name, value in self.parts.items()},
            moved(self.sequence_ids),
            moved(self.example_ids),
            self.target_lens,
        )

    def sequences(self, first: int, last: int) -> Batch:
        """Return sequences first … last - 1 as a batch of their own, of which each is an example, without extras and parts."""
        start, stop = sum(self.seq_lens[:first]), sum(self.seq_lens[:last])
        low, high = sum(self.target_lens[:first]), sum(self.target_lens[:last])
        return Batch(
            self.input_ids[start:stop],
            self.positions[start:stop],
            self.targets[start:stop],
            self.seq_lens[first:last],
            self.target_rows[low:high] - start,
            target_lens=self.target_lens[first:last],
        )


@dataclass(slots=True)
class LossOutput:
    """What an objective returns for one batch.

    sum: scalar, summed over tokens (or pairs), never a mean; float32, attached to the graph.
    metrics: name -> (sum, count), each a scalar tensor or number; reduced only when logged.
    """

    sum: Tensor
    metrics: dict[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: system, user, assistant or tool."""

    role: str
    content: str
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an output must match. kind: "json_schema", "json_object", "regex", "choice" or "ebnf". value: the schema as JSON text, the
    expression, the choices as a JSON list, or the grammar; empty for "json_object".
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "ebnf"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled and when it ends. Validated by the engine when the request is added.

    max_tokens, min_tokens: bounds of the output; before min_tokens neither an end id nor a stop text ends it.
    n: answers to one prompt; answer i draws from a stream of its own.
    temperature: 0 is greedy. top_k: 0 is off. top_p, min_p, typical_p: nucleus, relative and typical (arXiv:2202.00666) cut-offs.
    repetition_penalty: logits of ids already in prompt or output are divided (positive) or multiplied (negative) by it; 1 is off.
    presence_penalty, frequency_penalty: subtracted from the logits of ids already in the output, once and once per occurrence.
    logit_bias: id -> added to its logit. allowed_ids: the only ids that may come; None for all. bad_words: texts that must not come.
    seed: the random stream depends only on seed, answer and output position; None draws one at random.
    stop: texts that end the output (part of it only with include_stop); stop_ids: ids that end it, beside the tokenizer's own unless
    ignore_eos.
    logprobs, prompt_logprobs: for each token of output or prompt its log-probability and that many most probable ids; None for none.
    prompt_logprobs_start: place of the first prompt token that they are told for; what lies before may be found in the cache.
    logprob_ids: ids whose log-probabilities are told as well. They are those of the model's own logits, before any of the above.
    grammar: what the output must match. processors: (plugin of kind logits_processor, its options), in order.
    skip_special: leave special tokens out of the text. detokenize: False where no text is wanted.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    n: int = 1
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    include_stop: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_ids: tuple[int, ...] = ()
    grammar: GrammarSpec | None = None
    processors: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    skip_special: bool = True
    detokenize: bool = True
    prompt_logprobs_start: int = 0


@dataclass(slots=True)
class StepPlan:
    """One forward pass that an executor is asked for: a ragged batch of sequences and how to sample from it.

    Plain values and numpy arrays on the host, so that it can be sent to another process. Executors keep, by slot, the block table and
    the token sampled last; a slot belongs to one sequence from the step that first names it until another one is put there.

    step: increasing number. input_ids, positions: [T] int64; an id of -1 stands for the token sampled last for that sequence.
    slots: [N] int32, the slot of each sequence. query_lens, seq_lens: [N] int32. slot_mapping: [T] int64.
    num_decodes: the first so many sequences have one new token each.
    table: three int32 arrays (slots, columns, pages): what changes in the block table before this step.
    logits_indices: [M] int64 rows of T to sample from. logits_slots: [M] int32 slot of each.
    sampling: how, a value of the engine that is opaque to the transport; None for the greatest logit everywhere.
    adapters: [N] int32 adapter of each sequence, -1 for none; None when no sequence has one.
    extras: further arrays by name, of the engine.
    """

    step: int
    input_ids: Any
    positions: Any
    slots: Any
    query_lens: Any
    seq_lens: Any
    slot_mapping: Any
    num_decodes: int
    table: tuple[Any, Any, Any]
    logits_indices: Any
    logits_slots: Any
    sampling: Any = None
    adapters: Any = None
    extras: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class StepResult:
    """What a step gave: token_ids [M] int64, a numpy array on the host; extras such as log-probabilities by name."""

    step: int
    token_ids: Any
    extras: dict[str, Any] = field(default_factory=dict)
