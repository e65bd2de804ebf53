"""Which Triton is installed, and what happens where none compiles for a device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import metadata, util

import pytest
import torch
import triton

from pegboard_triton import compiler, table


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    for cached in (compiler.lacking, table._warn):
        cached.cache_clear()
    yield
    for cached in (compiler.lacking, table._warn):
        cached.cache_clear()


def test_this_triton_compiles_for_two_kinds() -> None:
    assert compiler.lacking("cuda") == compiler.lacking("hip") == ""
    assert compiler.lacking("xpu").startswith(f"Triton {triton.__version__} has no backend intel: install the Triton")


def test_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is replaced, and one line says so, however often it is asked."""
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    caplog.set_level(logging.WARNING, "pegboard")
    for _ in range(2):
        assert table.replacements("decode", torch.bfloat16, "hip") == {}
    (record,) = caplog.records
    assert record.message == "ops are computed by torch's own functions: Triton is not installed"
    assert compiler.notes("hip:gfx942", "AMD Instinct MI300X") == [
        "no kernels of pegboard-triton: Triton is not installed"
    ]


def test_a_triton_of_another_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler.name() == f"Triton {triton.__version__}"
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"triton": ["pytorch-triton-rocm"]})
    assert compiler.name() == f"Triton {triton.__version__} of pytorch-triton-rocm"


def test_notes() -> None:
    compiles, tuned = compiler.notes("cuda:90", "NVIDIA H200")
    assert compiles.endswith("compiles for cuda:90; tests compile every kernel for cuda:80 cuda:90 cuda:100")
    assert "none" not in tuned
    assert compiler.notes("cuda:86", "NVIDIA A10G")[1].endswith("none, so that the defaults are used")
