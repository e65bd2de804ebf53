"""`model/` of a step: a complete Hugging Face folder, or a complete PEFT folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pegboard.classifier import SCORE
from pegboard.errors import PegboardError
from pegboard.weights import write_model, write_safetensors
from pegboard_trainer.placement import Placement
from pegboard_trainer.roles import ModelRole

if TYPE_CHECKING:
    from pegboard.interfaces.format import ModelFiles
    from pegboard.interfaces.tokenizer import Tokenizer

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

    def __call__(self, folder: Path) -> None:
        """Write `folder`, tensor by tensor. In a run of several processes all of them call this, and the first one writes."""
        self.snapshot(copy=False)(folder)

    def snapshot(self, *, copy: bool) -> Callable[[Path], None]:
        """Return what writes the folder. copy: with the values of now, kept on the host, whatever becomes of the model."""
        world = self.placement.world
        if not copy or world.processes > 1:
            return lambda folder: self._write(folder, self._tensors())
        held = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in self._tensors()]
        return lambda folder: self._write(folder, iter(held))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is saved, whole, under the names that it has in files."""
        replaced, model = self.replaced(), self.role.built.model
        own = {name: name for name, _ in model.named_parameters()}
        if self.role.adapter is not None:
            own = dict(self.role.adapter.parameter_names(model))
            if model.score is not None:
                own[f"base_model.model.{SCORE}"] = SCORE
        for file_name, name in own.items():
            tensor = replaced[name] if name in replaced else model.get_parameter(name).detach()
            yield file_name, self.placement.whole(self.prefix + name, tensor)

    def _write(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
        if not self.placement.world.first:
            for _ in tensors:  # the first process needs this one's parts
                pass
            return
        try:
            self._write_files(folder, ((name, tensor.cpu()) for name, tensor in tensors))
        except BaseException:
            for _ in tensors:  # the other processes wait for this one's parts
                pass
            raise

    def _write_files(self, folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
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
        write_safetensors(folder / "adapter_model.safetensors", tensors)
        settings = dict(adapter.config(self.role.base))
        if built.model.score is not None:
            settings |= {"modules_to_save": ["score"], "task_type": "SEQ_CLS"}
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


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
