"""`model/` of a step: a complete Hugging Face folder, or a complete PEFT folder."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pegboard.build import BuiltModel
from pegboard.errors import PegboardError
from pegboard.interfaces.adapter import Adapter
from pegboard.weights import write_model, write_safetensors

if TYPE_CHECKING:
    from pegboard.interfaces.format import ModelFiles
    from pegboard.interfaces.tokenizer import Tokenizer

log = logging.getLogger("pegboard.train")


@dataclass(frozen=True, slots=True)
class ModelWriter:
    """Writes the trained model. base: what an adapter's config names as its base; unused without an adapter."""

    built: BuiltModel
    tokenizer: Tokenizer
    adapter: Adapter | None = None
    base: str = ""

    def __call__(self, folder: Path) -> None:
        """Write `folder`, tensor by tensor."""
        if self.adapter is not None:
            folder.mkdir(parents=True)
            for name, content in self.tokenizer.files().items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)  # additional_chat_templates/…
                (folder / name).write_bytes(content)
            write_safetensors(folder / "adapter_model.safetensors", self.adapter.tensors(self.built.model).items())
            config = json.dumps(dict(self.adapter.config(self.base)), indent=2) + "\n"
            (folder / "adapter_config.json").write_text(config)
            return
        dtype = str(self.built.dtype).removeprefix("torch.")
        config_json = {**self.built.config, "dtype": dtype, "torch_dtype": dtype}
        weights = ((name, p.detach().cpu()) for name, p in self.built.model.named_parameters())
        files = {**self.built.files.files, **self.tokenizer.files()}
        write_model(folder, config_json, weights, files, generation_config=self.built.files.generation_config or None)


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
