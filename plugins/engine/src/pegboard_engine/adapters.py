"""Adapters that are loaded beside the model: their names, slots and users, and the modules that compute them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pegboard.build import markers_of
from pegboard.errors import ConfigError, nearest
from pegboard.opened import adapter_plugins, open_adapter
from pegboard.ops import kernel_table

if TYPE_CHECKING:
    from torch import Tensor

    from pegboard.build import BuiltModel
    from pegboard.interfaces.adapter import AdapterSlots
    from pegboard.interfaces.executor import Executor
    from pegboard.plugins.load import Registry
    from pegboard.types import CachePlan


@dataclass(slots=True)
class _Loaded:
    folder: str
    slot: int
    generation: int
    users: int = 0


class LoadedAdapters:
    """Name -> slot, for the engine. A generation tells an adapter from others that had its name before or have it later."""

    def __init__(self, registry: Registry, most: int) -> None:
        self._registry = registry
        self._most = most
        self._loaded: dict[str, _Loaded] = {}
        self._generations = 0

    @property
    def folders(self) -> dict[str, str]:
        """The loaded adapters, name -> folder."""
        return {name: one.folder for name, one in list(self._loaded.items())}

    def load(self, name: str, folder: str, executor: Executor) -> None:
        """Open a folder and put its adapter into a free slot. Raises ConfigError or ModelError; then nothing has changed."""
        if not name:
            raise ConfigError("the adapter has no name", fix="give it one, by which requests choose it")
        if name in self._loaded:
            raise ConfigError(
                f"an adapter {name!r} is loaded already", fix="unload it first, or give this one another name"
            )
        free = set(range(self._most)) - {one.slot for one in self._loaded.values()}
        if not free:
            raise ConfigError(
                f"{self._most} adapters are loaded already ({', '.join(self._loaded)}), as many as max_adapters allows"
                if self._most
                else "max_adapters is 0",
                fix="unload one, or raise max_adapters" if self._most else "raise max_adapters",
            )
        path = Path(folder).expanduser()
        plugins = adapter_plugins(self._registry, path)
        if not plugins:
            raise ConfigError(
                f"{folder} is no folder of an adapter that an installed plugin reads",
                fix="name a folder that holds an adapter; `peg plugins list --kind adapter` shows the plugins",
            )
        plugin, files = open_adapter(self._registry, path, plugins)
        slot = min(free)
        executor.load_adapter(slot, files.tensors, {**files.adapter.config(files.base), "use": plugin})
        self._generations += 1
        self._loaded[name] = _Loaded(folder, slot, self._generations)

    def unload(self, name: str, executor: Executor) -> None:
        """Forget an adapter. Raises ConfigError while requests use it, or when there is none of that name."""
        one = self._find(name)
        if one.users:
            raise ConfigError(
                f"adapter {name!r} is used by {one.users} unfinished request{'s' if one.users > 1 else ''}",
                fix="unload it when they have ended, or abort them",
            )
        # First, so that the name is gone whatever becomes of the executor, which restores only what it was not told to unload.
        del self._loaded[name]
        executor.unload_adapter(one.slot)

    def slot(self, name: str | None) -> int:
        """Return the slot of an adapter, -1 for None. Raises ConfigError for an unknown name."""
        return -1 if name is None else self._find(name).slot

    def key(self, name: str | None) -> object:
        """Return what tells pages made with an adapter from all others."""
        return None if name is None else (name, self._find(name).generation)

    def use(self, name: str | None, count: int) -> None:
        """Note `count` more answers that use an adapter, or fewer where it is negative."""
        if name is not None:
            self._loaded[name].users += count

    def _find(self, name: str) -> _Loaded:
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise ConfigError(
                f"no adapter {name!r} is loaded{nearest(name, self._loaded)}", fix=f"load it first; loaded: {known}"
            )
        return self._loaded[name]


def adapter_bytes(built: BuiltModel, registry: Registry, num_slots: int, max_rank: int) -> int:
    """Return the most memory that adapters beside a model may take, of the kind that takes most; 0 where none is installed."""
    kinds = (
        [record.identity for record, spec in registry.candidates("adapter") if markers_of(spec)] if num_slots else []
    )
    return max(
        (
            registry.load("adapter", kind).serving_bytes(
                built.model, num_slots=num_slots, max_rank=max_rank, dtype=built.dtype
            )
            for kind in kinds
        ),
        default=0,
    )


class ServedAdapters:
    """The slots of a model that is being run, each filled through the plugin that reads its adapter.

    captured_key: what a captured step with adapters depends on, as of `AdapterSlots`; None where such steps cannot be captured, or no
    adapter is loaded. changes: how often a slot was filled or emptied.
    """

    def __init__(self, built: BuiltModel, cache: CachePlan, registry: Registry | None) -> None:
        self.captured_key: Hashable | None = None
        self.changes = 0
        self._built = built
        self._cache = cache
        self._registry = registry
        self._kinds: dict[str, AdapterSlots] = {}
        self._kind_of: dict[int, str] = {}
        # Indexed by slot; the last entry is that of -1, no adapter.
        self._filled = np.zeros(cache.max_adapters + 1, dtype=bool)
        self._filled[-1] = True

    def rows(self, slots: np.ndarray | None, counts: np.ndarray) -> Tensor | None:
        """Return `ForwardContext.adapter_slots`. slots: [N] of each sequence; counts: [N] its rows. Raises for an empty slot, in whose
        place the plain model would answer.
        """
        if slots is None:
            return None
        if not self._filled[slots].all():
            raise RuntimeError(f"the step names an adapter that is not loaded: {slots[~self._filled[slots]][0]}")
        return torch.from_numpy(np.repeat(slots, counts).astype(np.int64))

    def load(self, slot: int, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
        """Fill a slot. config: with the name of the plugin under "use". Raises what the plugin raises."""
        settings = dict(config)
        kind = str(settings.pop("use"))
        if kind not in self._kinds:
            if self._registry is None:
                raise RuntimeError("adapters need the registry of their plugins")
            self._kinds[kind] = self._serving(kind, self._registry)
        self._kinds[kind].load(slot, tensors, settings)
        if self._kind_of.get(slot, kind) != kind:
            self._kinds[self._kind_of[slot]].unload(slot)
        self._kind_of[slot] = kind
        self._filled[slot] = True
        self._note_change()

    def unload(self, slot: int) -> None:
        """Empty a slot."""
        kind = self._kind_of.pop(slot, None)
        if kind is not None:
            self._filled[slot] = False
            self._kinds[kind].unload(slot)
            self._note_change()

    def _serving(self, kind: str, registry: Registry) -> AdapterSlots:
        built = self._built
        slots: AdapterSlots = registry.load("adapter", kind).serving(
            built.model,
            num_slots=self._cache.max_adapters,
            max_rank=self._cache.max_adapter_rank,
            dtype=built.dtype,
        )
        # Made here and not with the model's: only now is the plugin imported that registers the ops of its own.
        offered = built.platform.kernels("decode", built.dtype, built.device.index or 0)
        slots.bind(kernel_table(offered, owner=f"platform {built.platform_name!r}"))
        return slots

    def _note_change(self) -> None:
        self.changes += 1
        keys = tuple((kind, self._kinds[kind].captured_key()) for kind in sorted(set(self._kind_of.values())))
        self.captured_key = keys if keys and all(key is not None for _, key in keys) else None
