"""Fresh prompts: what the table says, and cuDNN's way through torch, which falls back to its other kernel on a host."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import product
from typing import Any

import pytest
import torch

from pegboard import reference
from pegboard.types import AttentionInputs, AttentionSpec
from pegboard_cuda.cudnn import CudnnAttention
from pegboard_cuda.plugin import CUDNN
from pegboard_cuda.prompts import choices
from pegboard_sdk.conformance import AttentionSuite

LLAMA = AttentionSpec(0, 32, 8, 128, 128**-0.5)
ENTRIES: list[dict[str, Any]] = json.loads((files("pegboard_cuda") / "prompts.json").read_text())


class TestCudnn(AttentionSuite):
    spec = CUDNN
    dtype = torch.bfloat16
    tolerance = 2e-2
    sliding_window = False
    softcap = False
    bidirectional = False
    gradients = False
    paged = False


@pytest.mark.gpu
class TestCudnnOnGpu(TestCudnn):
    device = "cuda"
    num_heads = 16
    head_dim = 128


def test_cudnn_takes_alike_prompts_together() -> None:
    backend, lens = CudnnAttention(), [5, 5, 3, 0, 3, 7]
    spec = AttentionSpec(0, 4, 2, 16, 0.3)
    drawn = torch.randn(sum(lens), 8, 16, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    q, k, v = drawn.split([4, 2, 2], 1)
    calls = []

    def counted(*inputs: Any, **options: Any) -> Any:
        calls.append(tuple(inputs[0].shape))
        return attend(*inputs, **options)

    attend = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        out = backend.attend(q, k, v, spec, backend.plan(AttentionInputs(lens, lens), q.device, None), None)
    assert calls == [(2, 4, 5, 16), (1, 4, 3, 16), (1, 4, 3, 16), (1, 4, 7, 16)]
    torch.testing.assert_close(out.double(), reference.ragged_attention(q, k, v, spec, lens), rtol=2e-2, atol=2e-2)


def test_the_table() -> None:
    """What was measured is known by its shape; what was not is there by name alone."""
    hopper = {choice.name: choice for choice in choices(LLAMA, torch.bfloat16, (9, 0))}
    assert list(hopper) == ["fa3", "cudnn", "flashinfer", "flash-attn-4"]
    assert hopper["fa3"].default and hopper["fa3"].tokens == 2048 and "521 TFLOP/s" in hopper["fa3"].reason
    assert not hopper["cudnn"].default and "planned first" in hopper["cudnn"].reason
    for spec, dtype, capability in product(
        (LLAMA, AttentionSpec(0, 32, 4, 128, 1.0), AttentionSpec(0, 32, 8, 64, 1.0)),
        (torch.bfloat16, torch.float16),
        ((8, 0), (9, 0), (10, 0)),
    ):
        found = choices(spec, dtype, capability)
        assert len({choice.name for choice in found}) == len(found) == 4
        measured = (spec, dtype, capability) == (LLAMA, torch.bfloat16, (9, 0))
        assert any(choice.default for choice in found) == measured


def test_the_table_is_whole() -> None:
    for entry in ENTRIES:
        assert set(entry) - {"when"} == {"plugin", "tokens", "default", "reason"} and entry["reason"].strip()
        assert set(entry.get("when", {})) <= {"capability", "dtype", "head_dim", "group"}
        assert "when" in entry or not entry["default"]
