"""What quantizers of linear layers have in common: which layers, their places in the model, and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import nn

from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import Linear


class LinearQuantizer(Quantizer):
    """Holds a model's linear layers in fewer bits. Embedding and head stay as they are.

    layers: the classes of its layers, each of which has `plain()`.
    options: have `skip`, the names of layers that stay as they are: whole ones, or the last parts of dotted ones.
    only: names of the linear layers that a checkpoint holds quantised; None for all that the options do not skip.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]]

    def __init__(self, options: Any, *, only: Sequence[str] | None = None) -> None:
        self.options = options
        self._only = None if only is None else frozenset(only)

    @abstractmethod
    def replacement(self, name: str, linear: Linear, model: nn.Module) -> nn.Module:
        """Return what stands in the place of a linear layer, whose name is `name`."""

    def replaced_group(self, owner: nn.Module, group: nn.Module) -> nn.Module | None:
        """Return what stands in the place of a module that computes several of `owner`'s layers at once; None where it stays."""
        return None

    def plain_group(self, owner: nn.Module, group: nn.Module) -> nn.Module | None:
        """Return what stood where `replaced_group` put something; None where it may stay, as plain layers are computed one by one."""
        return None

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the linear layers that are held in fewer bits."""
        names = [name for name, module in model.named_modules() if isinstance(module, Linear)]
        if self._only is not None:
            return [name for name in names if name in self._only]
        skip = self.options.skip
        return [name for name in names if not any(name == s or name.endswith(f".{s}") for s in skip)]

    def swap(self, model: nn.Module) -> list[str]:
        """Replace the chosen linear layers and the groups that they form; return the names of the layers."""
        chosen = self.chosen(model)
        for name in chosen:
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            linear: Any = owner.get_submodule(leaf)
            setattr(owner, leaf, self.replacement(name, linear, model))
        for owner, leaf, child in _children(model):
            if (group := self.replaced_group(owner, child)) is not None:
                setattr(owner, leaf, group)
        return chosen

    def restore(self, model: nn.Module) -> None:
        """Put plain linear layers with dequantised weights back, adapted ones beneath their adapters."""
        for owner, leaf, child in _children(model):
            plain: Any = child.plain() if isinstance(child, self.layers) else self.plain_group(owner, child)  # type: ignore[operator]
            if plain is not None:
                setattr(owner, leaf, plain)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (owner, name in it, module) of all modules; what is yielded may be replaced meanwhile."""
    for owner in list(model.modules()):
        for leaf, child in list(owner.named_children()):
            yield owner, leaf, child
