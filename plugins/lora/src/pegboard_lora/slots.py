"""Several LoRA adapters in one model at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pegboard.errors import ConfigError, ModelError
from pegboard.interfaces.adapter import AdapterSlots
from pegboard.nn import LinearGroup
from pegboard.ops import KernelTable, kernel_table, replaced
from pegboard.ops import linear as reference_linear
from pegboard_lora import ops  # noqa: F401  # registers what the table is asked for
from pegboard_lora.bank import Bank, EmbeddingBank, make_factors
from pegboard_lora.files import CONFIG_FILE, check_tensors, options_of, peft_base_name, peft_embedding_names, peft_names
from pegboard_lora.rows import SETS, Arranger, SlotRows
from pegboard_lora.sites import EmbeddingSite, RowEmbedding, RowLinear, Site
from pegboard_lora.targets import adaptable, device_of, embeddings, named, put, select

if TYPE_CHECKING:
    from pegboard.types import ForwardContext

_MERGE = "merge it into the model (`peg merge`), and serve that"


class LoraSlots(AdapterSlots):
    """Layers are wrapped when an adapter that is loaded targets them, and put back when none does.

    kernels: the ops that are computed with, torch's until `bind`.
    """

    def __init__(self, model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype) -> None:
        self.kernels = kernel_table()
        self._model = model
        self._num_slots = num_slots
        self._max_rank = max_rank
        self._dtype = _product_dtype(model, dtype)
        self._layers = adaptable(model)
        self._embeddings = embeddings(model)
        self._default = named(None, model)
        self._sites = self._make_sites()
        self._tables = {
            name: EmbeddingSite(self, EmbeddingBank(num_slots, layer.weight.shape[1], max_rank))
            for name, layer in self._embeddings.items()
        }
        self._loaded: dict[int, list[str]] = {}
        devices = [device_of(layer) for layer in self._layers.values()]
        self._arranger = Arranger(devices[0] if devices else torch.device("cpu"))

    @torch.no_grad()
    def load(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Put an adapter into a slot; tensors under PEFT's names, config as in adapter_config.json."""
        if not 0 <= slot < self._num_slots:
            raise ConfigError(f"there is no slot {slot}", fix=f"slots are 0 to {self._num_slots - 1}")
        pairs = self._read(tensors, config)
        self.unload(slot)
        for site, members in self._sites:
            if any(name in pairs for name in members):
                site.bank.put(slot, make_factors([pairs.get(name) for name in members]))
        for name, table in self._tables.items():
            table.bank.put(slot, pairs.get(name))
        self._loaded[slot] = list(pairs)
        self._wrap()

    def unload(self, slot: int) -> None:
        """Empty a slot."""
        self._loaded.pop(slot, None)
        for site, _ in self._sites:
            site.bank.put(slot, None)
        for table in self._tables.values():
            table.bank.put(slot, None)
        self._wrap()

    def bind(self, kernels: KernelTable) -> None:
        """Compute with these ops."""
        self.kernels = kernels

    def captured_key(self) -> Hashable | None:
        """Which layers are adapted, where a platform's ops find the rest in the banks' tables; torch's look at rows on the host."""
        names = frozenset(name for names in self._loaded.values() for name in names)
        used = {"lora_embed_" if name in self._embeddings else "lora_add_" for name in names}
        return names if all(replaced(self.kernels, op) for op in used) else None

    def rows(self, ctx: ForwardContext) -> SlotRows:
        """Return the slots of a batch's rows."""
        found: SlotRows | None = ctx.adapter_plans.get(self)
        if found is None:
            arrange = partial(self._arranger.arrange, loaded=self._loaded)
            found = ctx.adapter_plans[self] = SlotRows(ctx.adapter_slots, ctx.adapter_rows, arrange)
        return found

    def _read(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A and scaled B^T of each layer that an adapter targets, on the layer's device, by the layer's name."""
        try:
            options = options_of(config, CONFIG_FILE)
        except ModelError as error:
            raise ConfigError(f"the adapter cannot be served beside others: {error.message}", fix=_MERGE) from error
        if config.get("use_dora"):
            raise ConfigError(
                "an adapter of DoRA changes whole rows of weights: it cannot be one of several", fix=_MERGE
            )
        targets = self._default if options.targets is None else options.targets
        # What is linear is told apart from what is not by "all-linear" alone.
        further = () if targets == "all-linear" else self._embeddings
        names = select([*self._layers, *further], targets)
        shapes: dict[str, tuple[int, ...]] = {}
        files: dict[str, tuple[str, str]] = {}
        for name in names:
            rank = options.rank_of(name)
            if rank > self._max_rank:
                raise ConfigError(
                    f"the adapter's rank for {name} is {rank}, above max_adapter_rank, {self._max_rank}",
                    fix=f"raise max_adapter_rank, or {_MERGE}",
                )
            of_a, of_b = peft_embedding_names(name) if name in further else peft_names(name, magnitude=False)
            files[name] = of_a, of_b
            outputs, inputs = self._sizes(name)
            shapes |= {of_a: (rank, inputs), of_b: (outputs, rank)}
        tensors = self._without_base(tensors, [name for name in names if name in further])
        check_tensors(shapes, tensors)
        pairs = {}
        for name in names:
            layer = self._embeddings[name] if name in further else self._layers[name]
            down, up = (tensors[key] for key in files[name])
            device, dtype = device_of(layer), self._dtype
            wide = torch.promote_types(torch.promote_types(up.dtype, dtype), torch.float32)
            pair = (down.to(device, dtype), (up.to(wide) * options.scaling_of(name)).to(device, dtype).t())
            # Zero times something that is not finite would reach the rows of others.
            if not all(tensor.isfinite().all() for tensor in pair):
                raise ModelError(
                    f"the adapter's tensors for {name} hold values that are not finite in {dtype}",
                    fix="train or export it again",
                )
            pairs[name] = pair
        return pairs

    def _make_sites(self) -> list[tuple[Site, tuple[str, ...]]]:
        """Return sites with the names of their members: one for the layers that a group computes together, one for each other."""
        groups: list[tuple[str, ...]] = []
        left = dict.fromkeys(self._layers)
        for name, module in self._model.named_modules():
            if isinstance(module, LinearGroup):
                owner = name.rpartition(".")[0]
                members = tuple(f"{owner}.{leaf}" if owner else leaf for leaf in module.names)
                # Members that are no plain layers (quantised ones, say) are computed one by one.
                if module.bases() is not None and all(member in left for member in members):
                    groups.append(members)
                    for member in members:
                        del left[member]
        return [(self._site(members), members) for members in (*groups, *((name,) for name in left))]

    def _site(self, members: tuple[str, ...]) -> Site:
        layers: list[Any] = [self._layers[name] for name in members]
        outputs = [layer.out_features for layer in layers]
        return Site(self, Bank(self._num_slots, layers[0].in_features, outputs, self._max_rank))

    def _without_base(self, tensors: Mapping[str, Tensor], tables: Sequence[str]) -> dict[str, Tensor]:
        """Return the tensors but the base's own embeddings, which PEFT saves beside an adapter of them. Raises ConfigError for others."""
        found = dict(tensors)
        for name in tables:
            weight = self._embeddings[name].weight
            own = found.pop(peft_base_name(name), None)
            if own is not None and (own.shape != weight.shape or not torch.equal(own.to(weight), weight)):
                raise ConfigError(
                    f"the adapter brings embeddings of its own for {name}, which are not the model's",
                    fix="serve the model that it was trained on, with those embeddings in it",
                )
        return found

    def _sizes(self, name: str) -> tuple[int, int]:
        """Return the outputs and inputs of a layer."""
        if name not in self._embeddings:
            layer: Any = self._layers[name]
            return layer.out_features, layer.in_features
        table = self._embeddings[name]
        if table.region is not None:
            raise ConfigError(
                f"the adapter targets {name}, whose rows are divided among processes: it cannot be one of several",
                fix="serve it in one process",
            )
        return table.weight.shape[1], table.weight.shape[0]

    def _wrap(self) -> None:
        """Let exactly those layers be wrapped that a loaded adapter targets."""
        self._arranger.forget()
        wanted = {name for names in self._loaded.values() for name in names}
        for site, members in self._sites:
            for index, name in enumerate(members):
                wrapped = isinstance(self._model.get_submodule(name), RowLinear)
                if wrapped != (name in wanted):
                    layer = self._layers[name]
                    put(self._model, name, layer if wrapped else RowLinear(layer, site, index))
        for name, table in self._tables.items():
            embedding = self._embeddings[name]
            put(self._model, name, RowEmbedding(embedding, table) if name in wanted else embedding)


def slots_bytes(model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype) -> int:
    """Return the bytes of `num_slots` slots that hold adapters of rank `max_rank` on every layer, and the embeddings."""
    sizes = (layer.in_features + layer.out_features for layer in adaptable(model).values())  # type: ignore[operator]
    each = sum(sizes) * max_rank * _product_dtype(model, dtype).itemsize
    tables = sum(sum(layer.weight.shape) for layer in embeddings(model).values())
    # Beside the factors of each slot, those of a few sets of slots lie side by side; not of embeddings.
    beside = int(each) * num_slots * (1 if num_slots == 1 else 1 + SETS)
    return beside + tables * max_rank * _product_dtype(model, dtype).itemsize * num_slots


def _product_dtype(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to multiply in: a platform that replaces the product in half precision does so as torch's own is slow there."""
    kernels = getattr(model, "kernels", None)
    linear = reference_linear if kernels is None else kernels.linear
    replaced = linear is not reference_linear and not getattr(linear, "beside_torch", False)
    return torch.float32 if replaced and dtype.itemsize < 4 else dtype
