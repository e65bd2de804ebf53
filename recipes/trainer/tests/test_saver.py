"""Step folders while a run goes on, and when it is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.errors import PegboardError
from pegboard.weights import read_folder
from pegboard_sdk.toys.model import random_model
from pegboard_sdk.toys.tokenizer import TinyTokenizer
from pegboard_trainer.adamw import AdamWFactory
from pegboard_trainer.checkpoint import Trained, load_step, step_folders
from pegboard_trainer.disk import remove_unfinished
from pegboard_trainer.model_folder import ModelWriter
from pegboard_trainer.options import AdamWOptions
from pegboard_trainer.patience import Patience
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.saver import Saver


def saver_of(run: Path, **options: Any) -> tuple[Saver, Trained]:
    """A saver of a tiny model whose optimizer has taken a step."""
    built = random_model(dtype="float32")
    named = list(built.model.named_parameters())
    optimizer = AdamWFactory(AdamWOptions(lr=0.1)).build(named)
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    trained = Trained(named, optimizer)
    writer = ModelWriter(ModelRole(built, trained=True), TinyTokenizer())
    return Saver(run, [("model", writer)], trained, lambda: ({"data": {}}, {}), os.getpid(), **options), trained


def fill(trained: Trained, value: float) -> None:
    with torch.no_grad():
        for _, parameter in trained.named:
            parameter.fill_(value)
            trained.optimizer.state[parameter]["exp_avg"].fill_(value)


def check(folder: Path, trained: Trained) -> None:
    """All that a step folder holds is of its step."""
    step = float(folder.name[5:])
    fill(trained, -1.0)
    assert load_step(folder, trained)[0]["step"] == step
    for _, parameter in trained.named:
        assert (parameter == step).all()
        assert (trained.optimizer.state[parameter]["exp_avg"] == step).all()
    assert all((tensor.load() == step).all() for tensor in read_folder(folder / "model").values())


def test_what_is_written_in_the_background_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    saver, trained = saver_of(tmp_path, background=True, keep=2)
    for step in (1, 2, 3):
        fill(trained, step)
        saver.save(step, Patience())
        fill(trained, 99.0)
        assert saver.finish() == (step, tmp_path / f"step-{step:08d}")
    assert saver.finish() is None
    folders = step_folders(tmp_path)
    assert [folder.name for folder in folders] == ["step-00000002", "step-00000003"]
    for folder in folders:
        check(folder, trained)


@pytest.mark.parametrize("background", [False, True])
def test_a_folder_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path, background: bool) -> None:
    saver, _ = saver_of(tmp_path, background=background)
    saver.save(1, Patience())
    saver.finish()
    failing: Any = Saver(
        tmp_path,
        [],
        saver.trained,
        lambda: ({"data": {1, 2}}, {}),  # no JSON value
        os.getpid(),
        background=background,
    )
    with pytest.raises((PegboardError, TypeError)):
        failing.save(2, Patience())
        failing.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "step-00000001"]


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
def test_a_kill_at_any_moment_leaves_a_usable_step(tmp_path: Path, background: bool) -> None:
    """A process that saves step after step is killed at 25 moments; the next one goes on in the same folder."""
    _, trained = saver_of(tmp_path, background=background)
    moments = random.Random(7)
    last = 0
    for _ in range(25):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # OpenMP's other threads did not come along
                saver, own = saver_of(tmp_path, background=background, keep=1)
                remove_unfinished(tmp_path)
                for step in range(last + 1, 10**6):
                    fill(own, step)
                    saver.save(step, Patience())
                    saver.finish()
                    if step == last + 1:
                        os.write(told, b"x")
            finally:
                os._exit(1)
        os.close(told)
        assert os.read(ready, 1) == b"x"
        time.sleep(moments.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        folders = step_folders(tmp_path)
        assert folders
        for folder in folders:
            check(folder, trained)
        assert (tmp_path / "final").is_dir()
        newest = int(folders[-1].name[5:])
        assert newest > last
        last = newest
