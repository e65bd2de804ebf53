"""Writing step folders: at once, or in the background from a copy on the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pegboard_trainer.checkpoint import Trained, mark_final, prune, snapshot, write_trainer
from pegboard_trainer.disk import begin, commit, unfinished, writing_to
from pegboard_trainer.model_folder import ModelWriter
from pegboard_trainer.patience import Patience
from pegboard_trainer.world import World

Gather = Callable[[], tuple[Mapping[str, Any], Mapping[str, Tensor]]]


@dataclass(slots=True)
class Saver:
    """Owns the step folders of a run. In a run of several processes all of them call each method, at the same places.

    models: name of each model's folder, and what writes it. gather: returns the state of the loop, and tensors beside it.
    keep, keep_best: how many of the newest folders stay, and whether that of the best measurement does. background: write from a copy.
    """

    run: Path
    models: Sequence[tuple[str, ModelWriter]]
    trained: Trained
    gather: Gather
    number: int
    keep: int | None = None
    keep_best: bool = False
    background: bool = False
    _thread: threading.Thread | None = None
    _error: list[BaseException] = field(default_factory=list)
    _pending: tuple[int, Path, Path, int | None] | None = None

    @property
    def world(self) -> World:
        """The processes that write together."""
        return self.trained.placement.world

    @property
    def writing(self) -> bool:
        """Whether this process is at work in the background."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, patience: Patience) -> None:
        """Write a step folder, or begin to. It has its name after `finish`."""
        target = self.run / f"step-{step:08d}"
        temporary = unfinished(target, self.number)
        self._pending = (step, temporary, target, patience.best_step if self.keep_best else None)
        state, tensors = self.gather()
        state = {**state, "patience": patience.state()}
        copy = self.background

        writers = [(temporary / name, writer.snapshot(copy=copy)) for name, writer in self.models]
        trained = snapshot(self.trained) if copy else self.trained
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()} if copy else tensors

        def start() -> None:
            if self.world.first:
                begin(temporary)
                (temporary / "trainer").mkdir()
                for folder, model in writers:
                    model.lay_out(folder)

        def write() -> None:
            for folder, model in writers:
                model.fill(folder)
            write_trainer(temporary / "trainer", step, trained, state, tensors)

        with writing_to(target, temporary):
            self.world.together(start)
            if not copy:
                self.world.together(write)
                return
        self._thread = threading.Thread(target=self._work, args=(write,), name="step-folder", daemon=False)
        self._thread.start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error.append(error)

    def finish(self) -> tuple[int, Path] | None:
        """Wait until the folder that was begun is whole, and give it its name; return step and folder, None when there is none."""
        if self._pending is None:
            return None
        step, temporary, target, best = self._pending
        self._pending = None

        def end() -> None:
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            if self._error:
                raise self._error.pop()

        def name() -> None:
            if self.world.first:
                commit(temporary, target)
                mark_final(self.run, step)
                prune(self.run, self.keep, best)

        with writing_to(target, temporary):
            self.world.together(end)
            self.world.together(name)
        return step, target
