from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pegboard.errors import PegboardError
from pegboard_trainer.disk import point, remove_unfinished, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "run" / "step") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not (tmp_path / "run" / "step").exists()
    assert names(tmp_path / "run") == ["step"]
    assert (tmp_path / "run" / "step" / "inner" / "file").read_text() == "x"


def test_a_newer_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for text in "ab":
        with whole_folder(tmp_path / "step") as folder:
            (folder / text).write_text(text)
    assert names(tmp_path) == ["step"]
    assert names(tmp_path / "step") == ["b"]


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyboardInterrupt()])
def test_nothing_stays_of_a_folder_that_failed(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), whole_folder(tmp_path / "step") as folder:
        (folder / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_the_systems_errors_are_told(tmp_path: Path) -> None:
    with pytest.raises(PegboardError, match="step cannot be written: No space left") as caught:
        with whole_folder(tmp_path / "step"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.fix == "free some space or choose another output"
    (tmp_path / "file").write_text("x")
    with pytest.raises(PegboardError, match="cannot be written"), whole_folder(tmp_path / "file" / "step"):
        pass


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-step-1" / "model").mkdir(parents=True)
    (tmp_path / "step-1").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step-1"]


def test_a_link_is_moved(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        point(tmp_path / "final", name)
    assert (tmp_path / "final").resolve() == (tmp_path / "b").resolve()
    assert names(tmp_path) == ["a", "b", "final"]
