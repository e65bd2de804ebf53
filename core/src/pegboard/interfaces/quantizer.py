"""Kind `quantizer`: weights in fewer bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Quantizer(ABC):
    """Swaps modules of an empty model for ones that hold fewer bits; the swapped modules quantise while weights stream in."""

    @abstractmethod
    def swap(self, model: nn.Module) -> list[str]:
        """Replace modules of a model on the meta device and return their names.

        A replacement has the call signature of the module it replaces and the method `load_weight(name, tensor)`, which receives
        each full-precision tensor of the checkpoint that belonged to the old module, once.
        """
