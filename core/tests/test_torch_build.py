from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from pegboard.torch_build import torch_build


def test_the_installed_torch() -> None:
    told = torch_build()
    assert told["__version__"] == torch.__version__
    assert told["cuda"] == torch.version.cuda  # a name of torch's own file


def test_nothing_heavy_is_imported() -> None:
    program = "import sys; from pegboard.torch_build import torch_build; torch_build(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_another_build(torch_built) -> None:
    torch_built("2.12.1", hip="7.2.1")
    assert torch_build() == {"__version__": "2.12.1", "cuda": None, "hip": "7.2.1", "xpu": None}


def test_no_torch_and_a_torch_that_tells_nothing(torch_built, tmp_path: Path, monkeypatch) -> None:
    torch_built("2.12.1")
    (tmp_path / "torch-2.12.1/torch/version.py").write_text("def broken(")
    assert torch_build() == {}
    (tmp_path / "torch-2.12.1/torch/version.py").unlink()
    assert torch_build() == {}

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert torch_build() == {}
