"""Wrong commands, keys, values and places: `peg` answers in a few lines with a fix, status 2, and nothing is left behind."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard_sdk.peg import Said

Peg = Callable[..., Said]
Arguments = Callable[..., list[str]]

COMMANDS = {
    "rum sft": "peg has no command 'rum' (did you mean 'run'?)",
    "run sfr": "no installed plugin offers recipe 'sfr' (did you mean 'sft'?)",
    "run sft --config lorra": "the recipe has no config 'lorra' (did you mean 'lora'?)",
    "run sft --config lora": "these keys need a value: model.path, data.path, output",
    "run sft --config ring.yaml": "configs extend each other in a circle",
    "run sft --config latin.yaml": "latin.yaml is no UTF-8 text",
    "run sft --config tab.yaml": "tab.yaml, line 2, column 1",
    "run sft --config twice.yaml": "the key 'a' stands twice",
    "run sft --config folder.yaml": "there is no config file",
    "config show sft a.b": "'a.b' is no override",
    "config show sft =x": "'' in '=x' is no key",
    "config show sft ~nope": "~nope: there is no key 'nope' to delete",
    "config show sft model.dtype=[": "the override 'model.dtype=[', line 1",
    "config show sft 'a={{b: !!python/object/apply:os.system [ls]}}'": "is not allowed",
    "config validate sft {given} optimizer.learning_rate=1": "optimizer.learning_rate: unknown key",
    "config validate sft {given} steps=many": "steps = 'many': expected a valid integer",
    "config validate sft {given} seed=-1": "seed = -1: expected greater than or equal to 0",
    "config validate sft {given} seed=99999999999999999999": "seed = 99999999999999999999: expected less than or equal",
    "config validate sft {given} optimizer.betas=[0.9,3]": "optimizer.betas.1 = 3: expected less than 1",
    "config validate sft {given} loggers=[jsnol]": "offers logger 'jsnol' (did you mean 'jsonl'?)",
    "config validate sft {given} output=${{output}}": "output: Recursive interpolation",
    "config validate sft {given} plugins.disabled=[sft]": "blocked: disabled as 'sft'",
    "config validate sft {given} plugins.disabled=3": "plugins.disabled is 3",
    "config copy sft nope": "the recipe has no config 'nope'",
    "config copy sft lora tab.yaml/x.yaml": "a part of the path is a file, not a folder",
    "config copy sft lora nowhere/x.yaml": "the folder nowhere does not exist",
    "config copy sft lora {long}": "the name is too long",
    "config list nope": "no installed plugin offers recipe 'nope'",
    "plugins list --kind adaptor": "there is no plugin kind 'adaptor' (did you mean 'adapter'?)",
    "plugins show lroa": "no installed plugin is called 'lroa' (did you mean 'lora'?)",
    "plugins check nope": "no installed plugin is called 'nope'",
    "generate nowhere/at/all hello": "there is no file or folder nowhere/at/all",
    "generate . hello": "the folder . holds no model",
    "generate tab.yaml hello": "no installed plugin opens files ending in '.yaml'",
    "generate {model} hello --dtype float7": "dtype is 'float7'",
    "generate {model} hello --attention nope": "no installed plugin offers attention 'nope'",
    "generate {model} hello --platform nope": "no installed plugin offers platform 'nope'",
    "generate {model} hello --temperature nan": "temperature is nan",
    "generate {model} hello --top-p 7": "top_p is 7.0",
    "generate {model} hello --max-tokens 0": "max_tokens is 0",
    "chat owner/name": "HF_HUB_OFFLINE keeps it from being fetched",
    "download owner/name": "run `HF_HUB_OFFLINE=0 peg download owner/name` once",
    "download --dataset owner/rows": "peg download --dataset owner/rows",
    "download owner/name --dataset rows": "name one thing to download",
    "download 'no id'": "is neither a folder nor a hub id",
    "convert {model} out --to hf --dtype int4": "dtype is 'int4'",
    "convert {model} out --to gguf": "can read models but not write them",
    "convert {model} {long} --to hf": "cannot be written: File name too long",
    "convert {model} tab.yaml --to hf": "tab.yaml exists",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with some files that are no configs; the hub cannot be reached and its cache is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from there when it was imported
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("ring.yaml").write_text("extends: ring.yaml\n")
    Path("latin.yaml").write_bytes(b"name: \xe9\n")
    Path("tab.yaml").write_text("a:\n\t- 1\n")
    Path("twice.yaml").write_text("a: 1\na: 2\n")
    Path("folder.yaml").mkdir()
    return tmp_path


@pytest.mark.parametrize("line", sorted(COMMANDS))
def test_a_wrong_line(here: Path, toy_model: Path, data: Path, peg: Peg, line: str) -> None:
    given = f"model={toy_model} data.path={data} output=out"
    before = sorted(here.rglob("*"))
    said = peg(*shlex.split(line.format(model=toy_model, given=given, long="x" * 300)))
    refused(said, COMMANDS[line])
    assert sorted(here.rglob("*")) == before


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architectures": ({"architectures": 3}, "architectures is 3; a list of names is needed"),
    "an architecture": ({"architectures": [3]}, "architectures is [3]; a list of names is needed"),
    "rope_scaling": ({"rope_scaling": 3}, "rope_scaling is 3; keys and values are needed"),
    "rope type": ({"rope_scaling": {"rope_type": "nope"}}, "rope_type 'nope', which is not supported"),
    "heads": ({"num_key_value_heads": 3}, "no multiple of its num_key_value_heads, 3"),
    "no size": ({"hidden_size": None}, "hidden_size is missing"),
}


@pytest.mark.parametrize("case", sorted(CONFIGS))
def test_a_config_that_means_nothing(toy_model: Path, tmp_path: Path, peg: Peg, case: str) -> None:
    changes, told = CONFIGS[case]
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(peg("generate", folder, "hello"), told)


TOKENIZERS = {
    "no JSON": ("tokenizer.json", b"{bad", "tokenizer.json is not JSON"),
    "a list": ("tokenizer_config.json", b"[]", "tokenizer_config.json holds a list"),
    "a template that is none": ("chat_template.jinja", b"{% for %}", "line 1, is not a chat template"),
    "a template that fails": ("chat_template.jinja", b"{{ 1 / 0 }}", "fails on the conversation: ZeroDivisionError"),
    "a template in Latin-1": ("chat_template.jinja", b"\xe9", "chat_template.jinja is not UTF-8 text"),
}


@pytest.mark.parametrize("case", sorted(TOKENIZERS))
def test_a_tokenizer_that_is_damaged(toy_model: Path, tmp_path: Path, peg: Peg, case: str) -> None:
    name, content, told = TOKENIZERS[case]
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    (folder / name).write_bytes(content)
    refused(peg("generate", folder, "hello", "--max-tokens", "1"), told)


@pytest.mark.parametrize("key", ["data.path", "data.validation"])
def test_data_that_fails_at_once_leaves_no_run_folder(tmp_path: Path, arguments: Arguments, peg: Peg, key: str) -> None:
    """The number of steps is given, so nothing has read the data before."""
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b"\xff\xfe\n")
    refused(peg(*arguments(tmp_path / "run", f"{key}={bad}")), "bad.jsonl, line 1: byte 1 is not UTF-8")
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_made(tmp_path: Path, arguments: Arguments, peg: Peg) -> None:
    (tmp_path / "file").touch()
    refused(peg(*arguments(tmp_path / "file" / "run")), "a part of the path is a file, not a folder")
    refused(peg(*arguments(tmp_path / ("x" * 300))), "the name is too long")
    refused(peg(*arguments(Path("/proc/run"))), "the output folder /proc/run cannot be made")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_finished_run_has_nothing_left_to_do(
    tmp_path: Path, arguments: Arguments, train: Callable[..., Path], peg: Peg
) -> None:
    run = train(tmp_path / "run", "steps=2")
    before = contents(run)
    for more in (["steps=2"], ["steps=1"]):
        said = peg(*arguments(run, "resume=auto", *more))
        assert said.status == 0
        assert "the run is finished" in said.err
        assert f"{more[0][-1]} are asked for" in said.err
        assert f"model: {run / 'final'}" in said.err
        assert contents(run) == before
    # In a folder of its own there would be no model at the end.
    refused(peg(*arguments(tmp_path / "other", f"resume={run}", "steps=2")), "nothing is left to train")
    assert not (tmp_path / "other").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(said: Said, told: str) -> None:
    """Check that `peg` refused, in a few lines, with a fix and without a traceback."""
    assert said.status == 2, said
    assert told in said.err, said.err
    assert "fix: " in said.err
    assert "Traceback" not in said.err
    assert said.err[said.err.index("error: ") :].count("\n") <= 7
