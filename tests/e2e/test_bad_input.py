"""Mistakes are told in a few lines, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Arguments = Callable[..., list[str]]


@pytest.fixture
def refused(tmp_path: Path, arguments: Arguments, peg: Any) -> Callable[..., str]:
    """Run with overrides that are wrong; return what was said."""

    def run(*more: str) -> str:
        out = peg(*arguments(tmp_path / "run", *more))
        assert out.status == 2
        assert not (tmp_path / "run").exists()
        assert len(out.err.splitlines()) <= 8
        return str(out.err)

    return run


def test_a_bad_line_1000_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"instruction": "a", "response": "b"})
    path.write_text("\n".join([good] * 999 + ['{"instruction": "a",}'] + [good] * 5))
    assert f"{path}, line 1000: not valid JSON" in refused(f"data.path={path}", "~steps")
    path.write_text("\n".join([good] * 999 + [json.dumps({"instruction": "a"})]))
    assert f"{path}, line 1000: no field 'response'" in refused(f"data.path={path}", "~steps")


def test_an_empty_data_set(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    assert "the data set is empty" in refused(f"data.path={path}")
    path.write_text(json.dumps({"instruction": "a" * 500, "response": "b"}))
    assert "no row of the data can be used" in refused(f"data.path={path}", "~steps", "batch.overlong=drop")


def test_a_file_that_is_not_there(tmp_path: Path, data: Path, refused: Callable[..., str]) -> None:
    wrong = data.with_name("sum.jsonl")
    assert f"there is no data file {wrong} (did you mean 'sums.jsonl'?)" in refused(f"data.path={wrong}")


def test_a_tokenizer_without_template(tmp_path: Path, toy_model: Path, refused: Callable[..., str]) -> None:
    import shutil

    folder = tmp_path / "plain"
    shutil.copytree(toy_model, folder)
    (folder / "chat_template.jinja").unlink()
    said = refused(f"model={folder}", "~steps")
    assert "the model's tokenizer has no chat template" in said
    assert "data.format=text" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("data.fromat=chat", "did you mean"),
        ("batch.size=0", "batch.size"),
        ("data.format=instruckt", "instruct"),
        ("optimizer.use=adamv", "adamw"),
        ("data.validation=40", "leaves one part empty"),
    ],
)
def test_wrong_keys_and_values(refused: Callable[..., str], change: str, said: str) -> None:
    assert said in refused(change)


def test_an_output_folder_that_exists_is_left_alone(tmp_path: Path, arguments: Arguments, peg: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("years of work")
    for more in ((), ("resume=auto",)):
        out = peg(*arguments(run, *more))
        assert out.status == 2
        assert f"the output folder {run} exists" in out.err
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
