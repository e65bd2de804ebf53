"""Where there is no GPU, kernels run in Triton's interpreter: it has to be chosen before any kernel is made."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that kernels run on: the first GPU, or the host with the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
