"""Lazy tensors and folders against the reference library's writer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pegboard.errors import ModelError
from pegboard.weights import read_folder, read_metadata, read_safetensors
from pegboard.weights.read import INDEX_NAME, TORCH_DTYPES


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    raw = torch.arange(32, dtype=torch.uint8) % 2
    tensors = {name: raw.view(dtype) if dtype != torch.bool else raw.bool() for name, dtype in TORCH_DTYPES.items()}
    save_file({n: t.clone() for n, t in tensors.items()}, path, {"format": "pt"})
    found = read_safetensors(path)
    assert read_metadata(path) == {"format": "pt"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        lazy = found[name]
        assert (lazy.name, lazy.shape, lazy.dtype) == (name, tuple(tensor.shape), tensor.dtype)
        assert torch.equal(lazy.load().view(torch.uint8), tensor.view(torch.uint8))


def test_rows_scalars_and_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    matrix = torch.randn(7, 3, 2)
    save_file({"m": matrix, "s": torch.tensor(2.5), "e": torch.zeros(4, 0)}, path)
    found = read_safetensors(path)
    assert torch.equal(found["m"].rows(2, 5), matrix[2:5])
    assert found["m"].rows(7, 7).shape == (0, 3, 2)
    assert found["s"].load().item() == 2.5 and found["s"].load().shape == ()
    assert found["e"].rows(1, 3).shape == (2, 0)
    for start, stop in ((-1, 2), (3, 2), (0, 8)):
        with pytest.raises(IndexError, match="m"):
            found["m"].rows(start, stop)
    with pytest.raises(IndexError):
        found["s"].rows(0, 1)


def test_loaded_tensors_are_copies(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(3)}, path)
    lazy = read_safetensors(path)["a"]
    lazy.load().zero_()
    assert torch.equal(lazy.load(), torch.ones(3))


def test_a_file_that_shrinks_or_vanishes_after_opening_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(300)}, path)
    lazy = read_safetensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"m\.safetensors became shorter.*a is cut off"):
        lazy.load()
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        lazy.load()


def test_a_file_is_read_without_a_second_copy_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({f"t{i}": torch.ones(4 << 20) for i in range(6)}, path)  # 6 tensors of 16 MiB
    code = (
        "import resource, sys; from pathlib import Path; import torch; from pegboard.weights import read_safetensors;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10;"
        "torch.ones(4 << 20).sum(); before = peak(); found = read_safetensors(Path(sys.argv[1]));"
        "print(sum(float(t.load().sum()) for t in found.values()), peak() - before)"
    )
    total, grown = subprocess.run(
        [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
    ).stdout.split()
    assert float(total) == 6 * (4 << 20)
    assert int(grown) < 40  # one tensor at a time, nothing of the file beside it


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4), "c": torch.randn(1)}
    save_file({"a": tensors["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": tensors["b"], "c": tensors["c"]}, folder / "model-00002-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", **dict.fromkeys("bc", "model-00002-of-00002.safetensors")}
    write_index(folder, shards)
    return tensors


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": weight_map}))


def test_shards_are_one_mapping(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    found = read_folder(tmp_path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name].load(), tensor) for name, tensor in tensors.items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors \(1 of 2 shards\)"):
        read_folder(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is truncated"):
        read_folder(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(tmp_path, {"a": first, "b": first, "d": second})
    with pytest.raises(ModelError, match=rf"promises.*b \(in {first}\), d \(in {second}\)"):
        read_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": torch.ones(1), "b": torch.ones(4)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="both hold b"):
        read_folder(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 3}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelError, match="no weight_map"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "."]
)
def test_shards_outside_the_folder_are_refused(tmp_path: Path, shard: str) -> None:
    write_index(tmp_path, {"a": shard})
    with pytest.raises(ModelError, match=r"not a file beside it|lacks"):
        read_folder(tmp_path)


def test_pickles_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle"):
        read_folder(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*none\.safetensors"):
        read_safetensors(tmp_path / "none.safetensors")


def test_a_tensor_is_read_into_memory_that_is_there(tmp_path: Path) -> None:
    values = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    save_file({"x": values}, tmp_path / "model.safetensors")
    lazy = read_safetensors(tmp_path / "model.safetensors")["x"]
    room = torch.zeros(5, 4, dtype=torch.bfloat16)
    lazy.read_into(room[1:4])
    assert torch.equal(room[1:4], values) and not room[0].any() and not room[4].any()
    for wrong in (room, room[1:4].float(), torch.zeros(4, 3, dtype=torch.bfloat16).t()):
        with pytest.raises(ValueError, match="cannot take it"):
            lazy.read_into(wrong)
