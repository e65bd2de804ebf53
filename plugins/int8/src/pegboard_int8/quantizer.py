from __future__ import annotations

from typing import cast

from torch import nn

from pegboard.interfaces.quantizer import Quantizer
from pegboard.nn import Experts, Head, Linear, LinearGroup
from pegboard.nn.experts import ExpertGroup
from pegboard_int8.layers import Int8Embedding, Int8Experts, Int8Group, Int8Head, Int8Linear
from pegboard_int8.options import Int8Options


class Int8Quantizer(Quantizer):
    """Signed 8-bit weights with one scale for each output (symmetric, round to nearest)."""

    def __init__(self, options: Int8Options) -> None:
        self.options = options

    def swap(self, model: nn.Module) -> list[str]:
        """Replace every linear layer and, where asked, the head and what it shares its weights with; return their names."""
        swapped: list[str] = []
        for path, owner in list(model.named_modules()):
            for leaf, child in list(owner.named_children()):
                name = f"{path}.{leaf}" if path else leaf
                if type(child) is Linear:
                    setattr(owner, leaf, Int8Linear(name, child.in_features, child.out_features, child.bias, model))
                    swapped.append(name)
                elif type(child) is LinearGroup:
                    setattr(owner, leaf, Int8Group(owner, child.names))
                elif type(child) is ExpertGroup:
                    setattr(owner, leaf, Int8Experts(cast(Experts, owner), child.names))
                elif type(child) is Head and self.options.head:
                    swapped += self._head(model, owner, leaf, name, child)
        return swapped

    def _head(self, model: nn.Module, owner: nn.Module, leaf: str, name: str, head: Head) -> list[str]:
        rows, columns = head.matrix.shape
        if head._tied is None:
            setattr(owner, leaf, Int8Head(name, rows, columns, model, None, head.softcap))
            return [name]
        path = next(path for path, module in model.named_modules() if module is head._tied[0])
        embedding = Int8Embedding(path, rows, columns, model)
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, embedding)
        setattr(owner, leaf, Int8Head(name, rows, columns, model, embedding, head.softcap))
        return [path, name]
