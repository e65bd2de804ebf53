from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.weights import read_safetensors, write_safetensors
from pegboard.weights.pump import BUFFERS, Pump

HOST = torch.device("cpu")


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "long": torch.randn(40, 31, generator=draw),
        "half": torch.randn(9, 5, generator=draw).bfloat16(),
        "one": torch.randn((), generator=draw),
        "none": torch.empty(0, 4),
        "exact": torch.randn(16, generator=draw),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, list(tensors().items()))
    return path


# A chunk that does not divide elements, one that divides a tensor, one that holds all.
@pytest.mark.parametrize("chunk", [37, 64, 1 << 16])
def test_every_tensor_arrives(file: Path, chunk: int) -> None:
    assert 40 * 31 * 4 > BUFFERS * 64
    places = {name: torch.full_like(value, 7.0) for name, value in tensors().items()}
    with Pump(HOST, pinned=False, chunk=chunk) as pump:
        for name, lazy in read_safetensors(file).items():
            pump.put(lazy, places[name])
    for name, value in tensors().items():
        assert torch.equal(places[name], value)


def test_another_dtype_is_converted(file: Path) -> None:
    lazy = read_safetensors(file)
    wide, narrow = torch.zeros(9, 5, dtype=torch.float64), torch.zeros(40, 31, dtype=torch.bfloat16)
    with Pump(HOST, pinned=False, chunk=16) as pump:
        pump.put(lazy["half"], wide)
        pump.put(lazy["long"], narrow)
    assert torch.equal(wide, tensors()["half"].double())
    assert torch.equal(narrow, tensors()["long"].bfloat16())


def test_a_place_of_another_shape_is_refused(file: Path) -> None:
    lazy = read_safetensors(file)
    with Pump(HOST, pinned=False) as pump, pytest.raises(ValueError, match="long is"):
        pump.put(lazy["long"], torch.zeros(31, 40))


def test_a_file_that_was_cut_is_told(file: Path) -> None:
    lazy = read_safetensors(file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match="became shorter"), Pump(HOST, pinned=False, chunk=512) as pump:
        for name, one in lazy.items():
            pump.put(one, torch.empty_like(tensors()[name]))


def test_an_error_leaves_no_thread(file: Path) -> None:
    import threading

    others = threading.enumerate()
    lazy = read_safetensors(file)
    with pytest.raises(RuntimeError, match="stop"), Pump(HOST, pinned=False, chunk=512) as pump:
        pump.put(lazy["long"], torch.zeros(40, 31))
        raise RuntimeError("stop")
    assert not [t for t in threading.enumerate() if t.name.startswith("weights") and t not in others]


@pytest.mark.gpu
@pytest.mark.parametrize("chunk", [64, 1 << 16])
def test_every_tensor_arrives_on_an_accelerator(file: Path, chunk: int) -> None:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    device = torch.device(device.type, 0)
    places = {name: torch.full_like(value, 7.0, device=device) for name, value in tensors().items()}
    places["half"] = places["half"].float()
    with Pump(device, chunk=chunk) as pump:
        for name, lazy in read_safetensors(file).items():
            pump.put(lazy, places[name])
    for name, value in tensors().items():
        assert torch.equal(places[name].cpu(), value.to(places[name].dtype))
