"""Recorded work: a replay gives what running it again would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pegboard.ops import registered
from pegboard_cpu_kernels import ops, program
from pegboard_cpu_kernels.arena import Arena
from pegboard_cpu_kernels.library import find
from pegboard_cpu_kernels.program import CannotRecord, record

LIBRARY = find().library
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=find().reason)


def table(dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    assert LIBRARY is not None
    return ops.replacements(LIBRARY, dtype, {name: op.function for name, op in registered().items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_replay_computes_with_what_the_inputs_hold_now(dtype: torch.dtype) -> None:
    assert LIBRARY is not None
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(50, 16, generator=generator).to(dtype)
    weight, gate = (torch.randn(n, 16, generator=generator).to(dtype) for n in (16, 48))
    down, scale = torch.randn(16, 24, generator=generator).to(dtype), torch.ones(16, dtype=dtype)
    kernels, ids, out = table(dtype), torch.zeros(3, dtype=torch.int64), []

    def layer(ids: Tensor) -> Tensor:
        x = F.embedding(ids, embedding)
        y = kernels["linear"](kernels["rms_norm"](x, scale, 1e-6), weight, None)
        normed, x = kernels["add_rms_norm"](y, x, scale, 1e-6)
        x = x + kernels["linear"](kernels["silu_mul"](kernels["linear"](normed, gate, None)), down, None)
        gated = kernels["gelu_tanh_mul"](kernels["linear"](kernels["offset_rms_norm"](x, scale, 1e-6), gate, None))
        x = x + kernels["linear"](gated, down, None)
        # Views, operations that are only torch's, and one that gives no tensor.
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.view(3, 2, 8).transpose(0, 1)[1].to(wide).sin().cumsum(0)

    with torch.inference_mode():
        recorded = record(LIBRARY, lambda: out.append(layer(ids)))
        assert recorded.calls == 13
        assert recorded.operations == (3 if dtype is not torch.float32 else 2)
        for values in ([1, 2, 3], [49, 0, 7], [5, 5, 5]):
            ids.copy_(torch.tensor(values))
            recorded.replay()
            assert torch.equal(out[0], layer(torch.tensor(values)))


def test_writes_in_place_and_several_results_are_repeated() -> None:
    assert LIBRARY is not None
    x, total = torch.tensor([3.0, 1.0, 2.0]), torch.zeros(3)
    found: list[Tensor] = []

    def work() -> None:
        values, order = x.sort()
        total.add_(values)
        total[order] += 1
        found[:] = [values, order]

    recorded = record(LIBRARY, work)
    x.copy_(torch.tensor([1.0, 5.0, 4.0]))
    recorded.replay()
    assert found[0].tolist() == [1.0, 4.0, 5.0]
    assert found[1].tolist() == [0, 2, 1]
    assert total.tolist() == [4.0, 8.0, 10.0]


def test_what_needs_a_value_on_the_host_is_refused() -> None:
    assert LIBRARY is not None
    x = torch.ones(2)
    with pytest.raises(CannotRecord, match="to the host"):
        record(LIBRARY, lambda: x.mul_(x.sum().item()))
    assert program.recorder is None
    record(LIBRARY, lambda: x.mul_(2)).replay()
    assert x.tolist() == [4.0, 4.0]


def test_one_thing_at_a_time() -> None:
    assert LIBRARY is not None
    library = LIBRARY
    with pytest.raises(CannotRecord, match="recorded already"):
        record(library, lambda: record(library, lambda: None) and None)
    assert program.recorder is None


def test_an_id_that_is_not_there_is_told() -> None:
    assert LIBRARY is not None
    weight, ids, found = torch.zeros(4, 8), torch.zeros(2, dtype=torch.int64), list[Tensor]()
    recorded = record(LIBRARY, lambda: found.append(F.embedding(ids, weight)))
    ids.fill_(4)
    with pytest.raises(IndexError, match="not in the table"):
        recorded.replay()


def test_layers_and_programs_share_their_working_memory() -> None:
    assert LIBRARY is not None
    kernels, arena = table(torch.float32), Arena()
    weights = torch.randn(12, 32, 32, generator=torch.Generator().manual_seed(0))

    def program_of(rows: int, layers: int) -> tuple[Tensor, list[Tensor], Any]:
        x, out = torch.zeros(rows, 32), []

        def work() -> None:
            y = x
            for weight in weights[:layers]:
                y = y + kernels["linear"](y, weight, None)
            out[:] = [y]

        return x, out, record(LIBRARY, work, arena)

    with torch.inference_mode():
        made = [program_of(rows, layers) for rows, layers in ((8, 12), (5, 4), (1, 12))]
        # Three tensors are alive at once in a layer; results stay.
        assert arena.num_bytes <= 4 * 8 * 32 * 4 + 2 * 8 * 32 * 4
        for turn in range(3):
            for x, out, recorded in made:
                x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(turn)) / 100)
                recorded.replay()
                y = x
                for weight in weights[: 4 if len(x) == 5 else 12]:
                    y = y + kernels["linear"](y, weight, None)
                assert torch.equal(out[0], y)
