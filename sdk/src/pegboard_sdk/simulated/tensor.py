"""The tensors of a simulated device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pegboard_sdk.simulated.device import SimulatedDevice

DEVICE = torch.device("lazy:0")


class Far(Tensor):
    """A tensor on a simulated device. near: the one on the host that it computes with, which belongs to its owner alone."""

    near: Tensor
    owner: SimulatedDevice

    @staticmethod
    def __new__(cls, near: Tensor, owner: SimulatedDevice) -> Far:
        out: Far = Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        out.near, out.owner = near, owner
        return out

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own signature lacks the operation
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        owner = next(x.owner for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Far))
        return owner.compute(func, args, kwargs or {})

    def data_ptr(self) -> int:
        """Return where its values are, for kernels of the device that are told addresses."""
        return self.near.data_ptr()

    def tolist(self) -> Any:
        """Wait for the values."""
        self.owner.wait("tolist")
        return self.near.tolist()

    def numpy(self, *, force: bool = False) -> NoReturn:
        """Raise TypeError: what is on a device has no memory that the host sees."""
        raise TypeError("a tensor on a device has no array on the host: copy it by .cpu() first")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"Far({tuple(self.shape)}, {self.dtype})"
