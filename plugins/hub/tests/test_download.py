"""`peg download` and hub ids, against a hub on the loopback device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard_hub.files import HfFormat

Peg = Callable[..., Any]
MakeFolder = Callable[..., dict[str, torch.Tensor]]


def downloads(hub: Any) -> list[str]:
    """Names of the files that were fetched."""
    return sorted(
        r.split("/resolve/")[1].partition("/")[2] for r in hub.requests if r.startswith("GET") and "/resolve/" in r
    )


def test_what_a_model_needs_is_fetched_once(
    hub: Any, peg: Peg, fetch: Peg, make_folder: MakeFolder, tmp_path: Path
) -> None:
    weights = make_folder(tmp_path / "source", shards=2)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "code.py", "x.gguf"):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes(b"no")
    hub.add("owner/tiny", tmp_path / "source")
    done = peg("download", "owner/tiny")
    assert done.returncode == 0, done.stderr
    assert "4 tensors" in done.stderr
    folder = Path(done.stdout.strip())
    expected = [
        "LICENSE",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert downloads(hub) == expected
    opened = HfFormat().open(str(folder))
    assert all(torch.equal(opened.tensors[name].load(), value) for name, value in weights.items())
    hub.requests.clear()
    again = fetch("owner/tiny")
    assert again.stdout == done.stdout
    assert downloads(hub) == []
    offline = fetch("owner/tiny", HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout
    unreachable = fetch("owner/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.stdout == done.stdout


def test_a_revision(hub: Any, peg: Peg, fetch: Peg, make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path / "one")
    make_folder(tmp_path / "two", hidden=16)
    hub.add("owner/tiny", tmp_path / "one")
    hub.add("owner/tiny", tmp_path / "two", revision="v2")
    folder = Path(fetch("owner/tiny", "v2").stdout.strip())
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 16
    folder = Path(fetch("owner/tiny").stdout.strip())
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 8
    wrong = peg("download", "owner/tiny", "--revision", "v3")
    assert wrong.returncode == 2
    assert "the model owner/tiny has no revision 'v3'" in wrong.stderr


def test_a_broken_transfer_continues(hub: Any, fetch: Peg, make_folder: MakeFolder, tmp_path: Path) -> None:
    weights = make_folder(tmp_path / "source", hidden=1792)  # 25 MB: pieces of 10 MB are kept
    hub.add("owner/tiny", tmp_path / "source")
    hub.cut.add("model.safetensors")
    done = fetch("owner/tiny")
    assert done.returncode == 0, done.stderr
    assert len(hub.ranges) == 1
    assert int(hub.ranges[0].removeprefix("model.safetensors bytes=").removesuffix("-")) >= 10_000_000
    opened = HfFormat().open(done.stdout.strip())
    assert all(torch.equal(opened.tensors[name].load(), value) for name, value in weights.items())


def test_a_dataset(hub: Any, peg: Peg, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "data" / "train.jsonl").write_text("{}\n")
    (source / "data" / "big.parquet").write_bytes(b"x")
    hub.add("datasets/owner/rows", source)
    done = peg("download", "--dataset", "owner/rows", "--include", "*.jsonl")
    assert downloads(hub) == ["data/train.jsonl"]
    assert (Path(done.stdout.strip()) / "data" / "train.jsonl").read_text() == "{}\n"
    hub.requests.clear()
    peg("download", "--dataset", "owner/rows")
    assert downloads(hub) == ["data/big.parquet"]
    none = peg("download", "--dataset", "owner/rows", "--include", "*.csv", HF_HOME=str(tmp_path / "other"))
    assert none.returncode == 2
    assert "no file of the data set owner/rows matches *.csv" in none.stderr


def check(result: Any, *texts: str) -> None:
    """A clear error: exit code 2, a few lines, nothing of Python's."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in result.stderr


def test_offline_says_what_to_do(hub: Any, peg: Peg, tmp_path: Path) -> None:
    cache = str(tmp_path / "home" / "hub")
    command = "`HF_HUB_OFFLINE=0 peg download owner/tiny`"
    check(peg("download", "owner/tiny", HF_HUB_OFFLINE="1"), "the model owner/tiny is not", cache, command)
    rows = peg("download", "--dataset", "owner/rows", HF_HUB_OFFLINE="1")
    check(rows, "the data set owner/rows is not", "peg download --dataset owner/rows")


def test_an_unreachable_hub_says_what_to_do(peg: Peg, tmp_path: Path) -> None:
    result = peg("download", "owner/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    check(result, "http://127.0.0.1:9 cannot be reached", "`peg download owner/tiny`", str(tmp_path / "home" / "hub"))


def test_a_partial_download_without_a_network(
    hub: Any, peg: Peg, fetch: Peg, make_folder: MakeFolder, tmp_path: Path
) -> None:
    make_folder(tmp_path / "source", shards=2)
    hub.add("owner/tiny", tmp_path / "source")
    folder = Path(fetch("owner/tiny").stdout.strip())
    (folder / "model-00002-of-00002.safetensors").unlink()
    check(peg("download", "owner/tiny", HF_HUB_OFFLINE="1"), "not, or not wholly, in", "HF_HUB_OFFLINE=0")


def test_refusals_of_the_hub(hub: Any, peg: Peg, make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path / "source")
    hub.add("owner/gated", tmp_path / "source", gated=True)
    check(peg("download", "owner/gated"), "accept its conditions", f"{hub.url}/owner/gated", "HF_TOKEN")
    check(peg("download", "owner/none"), "the hub has no model owner/none, or it is private", "HF_TOKEN")
    check(peg("download", "--dataset", "owner/none"), "no dataset owner/none", f"{hub.url}/datasets/owner/none")
    check(peg("download", "owner/bad..name"), "'owner/bad..name' is neither a folder nor a hub id")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "only as pytorch_model.bin, a pickle"),
        ("tiny.gguf", "holds only GGUF files"),
        ("flax_model.msgpack", "holds no .safetensors files"),
    ],
)
def test_models_without_safetensors(
    hub: Any, peg: Peg, make_folder: MakeFolder, tmp_path: Path, name: str, message: str
) -> None:
    make_folder(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").rename(tmp_path / "source" / name)
    hub.add("owner/tiny", tmp_path / "source")
    check(peg("download", "owner/tiny"), message)
    assert name not in downloads(hub)


def test_a_cache_that_cannot_be_written(hub: Any, peg: Peg, make_folder: MakeFolder, tmp_path: Path) -> None:
    make_folder(tmp_path / "source")
    hub.add("owner/tiny", tmp_path / "source")
    (tmp_path / "file").write_text("in the way")
    check(peg("download", "owner/tiny", HF_HOME=str(tmp_path / "file")), "cannot be stored in", "HF_HOME")


def test_a_damaged_file_in_the_cache_is_named(
    hub: Any, peg: Peg, fetch: Peg, make_folder: MakeFolder, tmp_path: Path
) -> None:
    make_folder(tmp_path / "source")
    hub.add("owner/tiny", tmp_path / "source")
    folder = Path(fetch("owner/tiny").stdout.strip())
    path = (folder / "model.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-3])
    check(peg("download", "owner/tiny"), "model.safetensors", "truncated")


def test_wrong_use(peg: Peg, tmp_path: Path) -> None:
    check(peg("download"), "name one thing to download")
    check(peg("download", "a/b", "--dataset", "c/d"), "name one thing to download")
    check(peg("download", "a/b", "--include", "*"), "--include is for data sets")
    check(peg("download", str(tmp_path)), "is here already")


def test_an_adapter_is_not_a_model(hub: Any, peg: Peg, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    (source / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    hub.add("owner/adapter", source)
    check(peg("download", "owner/adapter"), "holds an adapter", "owner/base")


def test_a_cache_that_other_tools_filled(fetch: Peg, make_folder: MakeFolder, tmp_path: Path) -> None:
    """The layout of https://huggingface.co/docs/huggingface_hub/guides/manage-cache, without a listing of the repository."""
    repository = tmp_path / "home" / "hub" / "models--owner--tiny"
    make_folder(repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    done = fetch("owner/tiny", HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == str(repository / "snapshots" / ("c" * 40)), done.stderr
