"""The wheel's function replaced by float64 sums of its signature; what is given to it, and what the wheel's flags refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.errors import PluginError
from pegboard.plugins.spec import Probe
from pegboard.types import AttentionInputs, AttentionSpec
from pegboard_fa3 import backend as subject
from pegboard_fa3.plugin import SPEC
from pegboard_fa3.probe import probe
from pegboard_sdk.conformance import AttentionSuite

CALLS: list[dict[str, Any]] = []


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: None = None,
    seqused_k: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: None = None,
    q_descale: None = None,
    k_descale: None = None,
    v_descale: None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Causal attention as the library documents it: of a window, (keys to the left, to the right), -1 for all; a soft cap of 0 is none."""
    CALLS.append({"window_size": window_size, "softcap": softcap, "lens": cu_seqlens_q.diff().tolist()})
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
    lens = cu_seqlens_q.diff().tolist()
    assert causal and max_seqlen_q == max_seqlen_k == max(lens) and int(cu_seqlens_q[-1]) == len(q)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16 and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    left, right = window_size
    assert right in (-1, 0) and softmax_scale is not None
    spec = AttentionSpec(
        0,
        q.shape[1],
        k.shape[1],
        q.shape[2],
        softmax_scale,
        window=None if left < 0 else left + 1,
        softcap=softcap or None,
    )
    return reference.ragged_attention(q, k, v, spec, lens).to(q.dtype)


def install(**disabled: bool) -> None:
    config, interface = ModuleType("fa3_fwd_config"), ModuleType("fa3_fwd_interface")
    flags = {f"FLASHATTENTION_DISABLE_{name}": value for name, value in disabled.items()}
    config.CONFIG = {"build_flags": {**flags, "FLASHATTENTION_ENABLE_VCOLMAJOR": True}}  # type: ignore[attr-defined]
    interface.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    sys.modules.update(fa3_fwd_config=config, fa3_fwd_interface=interface)
    subject._left_out.cache_clear()


@pytest.fixture(autouse=True)
def wheel(request: pytest.FixtureRequest) -> Iterator[None]:
    """The wheel 0.0.3, but with windows; the real one on a GPU."""
    if request.node.get_closest_marker("gpu"):
        subject._left_out.cache_clear()
        yield
        return
    CALLS.clear()
    install(FP16=True, LOCAL=False, SOFTCAP=False, PAGEDKV=True)
    yield
    for name in ("fa3_fwd_config", "fa3_fwd_interface"):
        sys.modules.pop(name, None)
    subject._left_out.cache_clear()


class TestFa3(AttentionSuite):
    spec = SPEC
    dtype = torch.bfloat16
    tolerance = 2e-2
    bidirectional = False
    gradients = False
    paged = False


@pytest.mark.gpu
class TestOnGpu(TestFa3):
    device = "cuda"
    num_heads = 16
    head_dim = 128
    sliding_window = False


def test_what_is_passed() -> None:
    backend, lens = subject.Fa3Attention(), [5, 0, 3]
    q = torch.randn(8, 6, 16, dtype=torch.bfloat16)
    plan = backend.plan(AttentionInputs(lens, lens), q.device, None)
    for window, softcap in ((None, None), (4, None), (1, 30.0)):
        spec = AttentionSpec(0, 2, 2, 16, 0.25, window=window, softcap=softcap)
        backend.attend(q[:, :2], q[:, 2:4], q[:, 4:], spec, plan, None)
    assert CALLS == [
        {"window_size": (-1, -1), "softcap": 0.0, "lens": lens},
        {"window_size": (3, 0), "softcap": 0.0, "lens": lens},
        {"window_size": (0, 0), "softcap": 30.0, "lens": lens},
    ]


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float16, "torch.float16 is none of bfloat16"),
        ({}, torch.float32, "torch.float32 is none of bfloat16"),
        ({"head_dim": 12}, torch.bfloat16, "no multiple of 8"),
        ({"head_dim": 264}, torch.bfloat16, "up to 256"),
        ({"causal": False}, torch.bfloat16, "only causal"),
        ({"window": 8}, torch.bfloat16, "built without sliding windows"),
        ({"softcap": 8.0}, torch.bfloat16, "built without soft caps"),
    ],
)
def test_what_the_wheel_lacks_is_refused(changes: dict[str, Any], dtype: torch.dtype, reason: str) -> None:
    install(FP16=True, LOCAL=True, SOFTCAP=True)
    layer = {"layer": 0, "num_heads": 4, "num_kv_heads": 2, "head_dim": 128, "scale": 0.1} | changes
    assert reason in (subject.Fa3Attention().unsupported(AttentionSpec(**layer), dtype) or "")


def test_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    subject._left_out.cache_clear()
    monkeypatch.setitem(sys.modules, "fa3_fwd_config", None)
    told = subject.Fa3Attention().unsupported(AttentionSpec(0, 4, 2, 128, 0.1), torch.bfloat16)
    assert told is not None and told.startswith("fa3-fwd cannot be imported")
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", None)
    backend, x = subject.Fa3Attention(), torch.zeros(2, 2, 64, dtype=torch.bfloat16)
    plan = backend.plan(AttentionInputs([2], [2]), x.device, None)
    with pytest.raises(PluginError, match="fa3-fwd cannot be imported") as raised:
        backend.attend(x, x, x, AttentionSpec(0, 2, 2, 64, 0.1), plan, None)
    assert raised.value.fix is not None and "pegboard-fa3[kernels]" in raised.value.fix


def test_the_probe_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    wanted = "fa3-fwd is not installed (pip install 'pegboard-fa3[kernels]')"
    assert probe() == Probe(False, False, wanted)
