"""Where there is no GPU, kernels run in Triton's interpreter: it has to be chosen before any kernel is made."""

import os
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        """Let a scalar of a kernel be the bound of a loop: the interpreter's are arrays of one item, which numpy 2.4 takes for no integers."""
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_lang_tensor


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that kernels run on: the first GPU, or the host with the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
