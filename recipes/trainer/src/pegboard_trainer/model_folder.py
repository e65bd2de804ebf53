"""`model/` of a step: a complete Hugging Face folder, or a complete PEFT folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pegboard.classifier import SCORE
from pegboard.errors import PegboardError
from pegboard.weights import Room, overwrite, read_folder, read_safetensors, write_model, write_safetensors
from pegboard_trainer.placement import Piece, Placement
from pegboard_trainer.roles import ModelRole

if TYPE_CHECKING:
    from pegboard.interfaces.format import ModelFiles
    from pegboard.interfaces.tokenizer import Tokenizer

ADAPTER_WEIGHTS = "adapter_model.safetensors"

log = logging.getLogger("pegboard.train")


@dataclass(frozen=True, slots=True)
class ModelWriter:
    """Writes a trained role. prefix: of its parameters' names in the run's placement.

    replaced: parameters by the model's names whose values are written in the place of the model's (moving averages).
    """

    role: ModelRole
    tokenizer: Tokenizer
    placement: Placement = field(default_factory=Placement)
    prefix: str = ""
    replaced: Callable[[], Mapping[str, Tensor]] = dict

    def snapshot(self, *, copy: bool) -> ModelSnapshot:
        """Return what is to be written of this process. copy: the values of now, kept on the host, whatever becomes of the model."""
        replaced, model = self.replaced(), self.role.built.model
        own = {name: name for name, _ in model.named_parameters()}
        if self.role.adapter is not None:
            own = dict(self.role.adapter.parameter_names(model))
            if model.score is not None:
                own[f"base_model.model.{SCORE}"] = SCORE
        held = []
        for file_name, name in own.items():
            parameter = model.get_parameter(name)
            part = self.placement.local(replaced.get(name, parameter).detach())
            piece = self.placement.piece(self.prefix + name, parameter)
            held.append((file_name, part.to("cpu", copy=True) if copy and piece.own else part, piece))
        return ModelSnapshot(self, held)

    def _write_files(self, folder: Path, tensors: Iterator[tuple[str, Tensor | Room]]) -> None:
        built, adapter = self.role.built, self.role.adapter
        if adapter is None:
            dtype = str(built.dtype).removeprefix("torch.")
            config = {**built.config, "dtype": dtype, "torch_dtype": dtype}
            files = {**built.files.files, **self.tokenizer.files()}
            write_model(folder, config, tensors, files, generation_config=built.files.generation_config or None)
            return
        folder.mkdir(parents=True)
        for name, content in self.tokenizer.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)  # additional_chat_templates/…
            (folder / name).write_bytes(content)
        write_safetensors(folder / ADAPTER_WEIGHTS, tensors)
        settings = dict(adapter.config(self.role.base))
        if built.model.score is not None:
            settings |= {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """What a folder is written from: what this process has of each tensor, by its name in files, and where that is in the whole."""

    writer: ModelWriter
    held: Sequence[tuple[str, Tensor, Piece]]

    @property
    def _together(self) -> bool:
        return self.writer.placement.world.processes > 1

    def lay_out(self, folder: Path) -> None:
        """Write the folder with room for what all processes will fill in: one of them does this, before any fills."""
        if self._together:
            self.writer._write_files(folder, ((name, Room(piece.whole, t.dtype)) for name, t, piece in self.held))

    def fill(self, folder: Path) -> None:
        """Write what this process has, tensor by tensor; alone, the folder."""
        if not self._together:
            self.writer._write_files(folder, ((name, tensor.cpu()) for name, tensor, _ in self.held))
            return
        file = folder / ADAPTER_WEIGHTS
        there = read_folder(folder) if self.writer.role.adapter is None else read_safetensors(file)
        overwrite(
            (there[name], start, values)
            for name, part, piece in self.held
            if piece.own and name in there
            for start, values in piece.blocks(part)
        )


def cache_folder() -> Path:
    """Return where converted models are kept: PEGBOARD_CACHE, or ~/.cache/pegboard."""
    return Path(os.environ.get("PEGBOARD_CACHE") or Path.home() / ".cache" / "pegboard").expanduser()


def portable_base(files: ModelFiles) -> str:
    """Return an id or absolute folder under which other tools find this model.

    A model that they cannot read (a GGUF file) is written once as a Hugging Face folder into the cache, under its fingerprint.
    """
    if files.portable:
        path = Path(files.location).expanduser()
        return str(path.resolve()) if path.exists() else files.location
    folder = (cache_folder() / "bases" / f"{Path(files.location).stem}-{files.fingerprint()}").absolute()
    if not (folder / "config.json").is_file():
        log.info("%s is written once to %s, as the base that the adapter names", files.location, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = {**files.config, "dtype": "float32", "torch_dtype": "float32"}
        try:
            write_model(
                folder, config, files.tensors.items(), files.files, generation_config=files.generation_config or None
            )
        except PegboardError:
            if not (folder / "config.json").is_file():  # else another run has written it meanwhile
                raise
    return str(folder)
