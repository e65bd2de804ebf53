"""Training over two accelerators is training on the host: the same losses, whatever is divided among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard.build import choose_platform
from pegboard.plugins.load import Registry

pytestmark = pytest.mark.gpu

MESHES = {
    "replicate": ["mesh.replicate=2"],
    "shard": ["mesh.shard=2"],
    # Gradients are summed, and their norm is computed, on the host.
    "offload": ["mesh.shard=2", "mesh.offload=true"],
    "tensor": ["mesh.tensor=2", "batch.accumulate=2"],
}


@pytest.mark.parametrize("name", MESHES)
def test_two_accelerators_are_one_host(
    name: str,
    tmp_path: Path,
    arguments: Callable[..., list[str]],
    train: Callable[..., Path],
    start: Any,
    losses: Callable[[Path], dict[int, float]],
) -> None:
    platform, hardware = choose_platform(Registry.discover())
    if hardware.device().type == "cpu" or len(hardware.devices()) < 2:
        pytest.skip("two accelerators are needed")
    wanted = losses(train(tmp_path / "host", "batch.accumulate=2"))
    command = arguments(tmp_path / name, f"model.platform={platform}", *MESHES[name])
    child = start([command[0], "--nproc", "2", *command[1:]])
    said, errors = child.communicate(timeout=280)
    assert child.returncode == 0, said + errors
    found = losses(tmp_path / name)
    assert found.keys() == wanted.keys()
    assert all(found[step] == pytest.approx(wanted[step], rel=2e-3) for step in wanted)
