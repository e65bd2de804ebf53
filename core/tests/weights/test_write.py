"""Files and folders that we write, read back by the reference library; and what is left when writing fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open

from pegboard.errors import ModelError, PegboardError
from pegboard.weights import Room, overwrite, read_folder, read_safetensors, write_model, write_safetensors
from pegboard.weights import folder as folder_module
from pegboard.weights.read import INDEX_NAME
from pegboard.weights.write import writing


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    same = all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in expected.items())
    return same and found.keys() == expected.keys()


def test_a_file_is_what_the_reference_library_reads(tmp_path: Path) -> None:
    tensors = {
        "plain": torch.randn(3, 4),
        "bf16": torch.randn(5).bfloat16(),
        "transposed": torch.randn(2, 6).T,
        "view": torch.randn(8, 2)[::2],
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "fp8": torch.ones(4).to(torch.float8_e4m3fn),
        "ünïcode": torch.ones(1, dtype=torch.bool),
    }
    path = tmp_path / "m.safetensors"
    write_safetensors(path, tensors.items(), {"a": "b"})
    assert equal(load_file(path), {n: t.detach() for n, t in tensors.items()})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"a": "b"}
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_lazy_tensors_are_copied_one_by_one(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", [("x", torch.randn(4))])
    source = read_safetensors(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.safetensors", [("y", source["x"])])
    assert torch.equal(load_file(tmp_path / "b.safetensors")["y"], source["x"].load())


def test_a_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, [("x", torch.ones(2))])

    class Broken:
        name, shape, dtype = "y", (2,), torch.float32

        def load(self) -> torch.Tensor:
            raise ModelError("damaged")

        def rows(self, start: int, stop: int) -> torch.Tensor:
            raise ModelError("damaged")

    with pytest.raises(ModelError, match="damaged"):
        write_safetensors(path, [("x", torch.zeros(2)), ("y", Broken())])
    assert torch.equal(load_file(path)["x"], torch.ones(2))
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_unwritable_names_and_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="x is to be written twice"):
        write_safetensors(tmp_path / "m", [("x", torch.ones(1)), ("x", torch.ones(1))])
    with pytest.raises(ModelError, match=r"x is of torch\.complex128"):
        write_safetensors(tmp_path / "m", [("x", torch.ones(1, dtype=torch.complex128))])
    with pytest.raises(PegboardError, match="cannot be written"):
        write_safetensors(tmp_path / "none" / "m", [("x", torch.ones(1))])
    assert os.listdir(tmp_path) == []


CONFIG = {"architectures": ["ToyForCausalLM"], "hidden_size": 4}
FILES = {"tokenizer.json": b"{}", "additional_chat_templates/tools.jinja": b"x"}


def weights(count: int = 5) -> dict[str, torch.Tensor]:
    return {f"model.layers.{i}.weight": torch.randn(8, 4) for i in range(count)}


def test_a_model_folder_is_complete(tmp_path: Path) -> None:
    tensors = weights()
    folder = tmp_path / "deep" / "out"
    write_model(folder, CONFIG, iter(tensors.items()), FILES, generation_config={"eos_token_id": 2})
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        *FILES,
    }
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": 2}
    assert equal(load_file(folder / "model.safetensors"), tensors)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (folder / "model.safetensors").stat().st_size < 5 * 128 + 1000
    assert os.listdir(folder.parent) == ["out"]
    assert folder.stat().st_mode & 0o777 == tmp_path.joinpath("deep").stat().st_mode & 0o777


def test_shards_stay_under_their_limit(tmp_path: Path) -> None:
    tensors = {**weights(), "large": torch.randn(100)}
    write_model(tmp_path / "out", CONFIG, tensors.items(), {}, max_shard_bytes=300)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [s.name for s in shards] == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == 5 * 128 + 400
    for shard in shards:
        held = load_file(shard)
        assert {name for name, file in index["weight_map"].items() if file == shard.name} == held.keys()
        assert sum(t.nbytes for t in held.values()) <= 300 or held.keys() == {"large"}
    assert equal({name: lazy.load() for name, lazy in read_folder(tmp_path / "out").items()}, tensors)


def test_large_files_keep_their_padded_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "COMPACT_BELOW", 0)
    monkeypatch.setattr(folder_module, "HEADER_ROOM", 1024)
    tensors = weights(30)
    write_model(tmp_path / "out", CONFIG, tensors.items(), {})
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1  # a full header begins a new shard
    assert equal({name: t for shard in shards for name, t in load_file(shard).items()}, tensors)
    assert equal({name: lazy.load() for name, lazy in read_folder(tmp_path / "out").items()}, tensors)


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    embedding = torch.randn(6, 2)
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    write_model(tmp_path / "tied", {"tie_word_embeddings": True}, tensors.items(), {})
    assert load_file(tmp_path / "tied" / "model.safetensors").keys() == {"model.embed_tokens.weight"}
    write_model(tmp_path / "untied", {"tie_word_embeddings": False}, tensors.items(), {})
    assert equal(load_file(tmp_path / "untied" / "model.safetensors"), tensors)


def test_a_model_without_tensors_is_still_a_folder(tmp_path: Path) -> None:
    write_model(tmp_path / "out", CONFIG, [], {})
    assert read_folder(tmp_path / "out") == {}


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(PegboardError, match="out exists already"):
        write_model(tmp_path / "out", CONFIG, weights().items(), {})
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "", "config.json", "model.safetensors", "./config.json", INDEX_NAME, "c:x"]
)
def test_files_may_not_leave_the_folder_or_replace_the_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError):
        write_model(tmp_path / "out", CONFIG, weights().items(), {name: b"x"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error", [ModelError("damaged"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_nothing_is_left_when_a_tensor_fails(tmp_path: Path, error: BaseException) -> None:
    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(2)
        raise error

    with pytest.raises((ModelError, PegboardError, KeyboardInterrupt)):
        write_model(tmp_path / "out", CONFIG, tensors(), {})
    assert os.listdir(tmp_path) == []


def test_the_systems_errors_are_explained(tmp_path: Path) -> None:
    with pytest.raises(PegboardError, match="no space left to write x"), writing(Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PegboardError, match="cannot be written: Permission denied"), writing(Path("x")):
        raise OSError(errno.EACCES, "Permission denied")


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("call", ["write_safetensors(out, pairs)", "write_model(out, {}, pairs, {})"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, call: str) -> None:
    code = f"""
import resource, signal, sys
from pathlib import Path
import torch
from pegboard.errors import PegboardError
from pegboard.weights import write_model, write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (700 << 10, 700 << 10))
out, pairs = Path(sys.argv[1]), [("x", torch.ones(1 << 20))]
try:
    {call}
except PegboardError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=True, capture_output=True, text=True)
    assert "no space left to write" in result.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("lazily", [False, True])
def test_tensors_are_let_go_of_one_by_one(tmp_path: Path, lazily: bool) -> None:
    alive, peak = 0, 0

    def make() -> torch.Tensor:
        nonlocal alive, peak
        tensor = torch.ones(64)
        alive += 1
        peak = max(peak, alive)
        weakref.finalize(tensor.untyped_storage(), gone)
        return tensor

    def gone() -> None:
        nonlocal alive
        alive -= 1

    class Lazy:
        def load(self) -> torch.Tensor:
            return make()

    pairs = ((f"t{i}", Lazy() if lazily else make()) for i in range(8))
    write_model(tmp_path / "out", {"tie_word_embeddings": True}, pairs, {})
    assert (alive, peak) == (0, 1)


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 3, 4)])
def test_room_is_filled_by_whoever_has_the_values(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Every way of cutting a tensor into two blocks."""
    values = torch.randn(shape).bfloat16()
    for dim in range(max(len(shape), 1)):
        write_safetensors(tmp_path / "a", [("before", torch.ones(5)), ("x", Room(shape, torch.bfloat16))])
        (target,) = (tensor for name, tensor in read_safetensors(tmp_path / "a").items() if name == "x")
        assert not target.load().any()
        cut = [0] if not shape else [0, 1]
        for at in cut:
            part = values if not shape else values.split([1, shape[dim] - 1], dim)[at]
            start = [at if place == dim else 0 for place in range(len(shape))]
            overwrite([(target, start, part)])
        assert target.load().equal(values)
        assert read_safetensors(tmp_path / "a")["before"].load().equal(torch.ones(5))


def test_a_model_may_have_room_in_several_files(tmp_path: Path) -> None:
    shapes = {f"t{number}": (4, 3) for number in range(5)}
    write_model(
        tmp_path / "model", {}, ((n, Room(s, torch.float32)) for n, s in shapes.items()), {}, max_shard_bytes=100
    )
    there = read_folder(tmp_path / "model")
    assert len({tensor.path for tensor in there.values()}) == 3
    overwrite((there[name], (1, 1), torch.full((2, 2), float(name[1:]))) for name in shapes)
    for name, tensor in read_folder(tmp_path / "model").items():
        wanted = torch.zeros(4, 3)
        wanted[1:3, 1:] = float(name[1:])
        assert tensor.load().equal(wanted)


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a", [("x", Room((4, 3), torch.float32))])
    target = read_safetensors(tmp_path / "a")["x"]
    for start, values in (((3, 0), torch.ones(2, 3)), ((0, 0), torch.ones(2, 3).half()), ((0,), torch.ones(3))):
        with pytest.raises(ValueError, match=r"do not fit|argument"):
            overwrite([(target, start, values)])
    assert not target.load().any()
