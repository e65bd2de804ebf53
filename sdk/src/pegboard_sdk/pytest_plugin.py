"""The pytest plugin: fixtures for tests of plugins. Importing it imports neither torch nor the core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.platform import Platform
    from pegboard.plugins.load import Registry
    from pegboard.plugins.spec import PluginSpec
    from pegboard_sdk.peg import Said
    from pegboard_sdk.simulated import SimulatedDevice
    from pegboard_sdk.site import Site
    from pegboard_sdk.toys.tokenizer import TinyTokenizer

# Assertions of the suites explain themselves as those of a test file do.
pytest.register_assert_rewrite("pegboard_sdk.conformance")


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block every installed plugin, in this process and in those that it starts."""
    monkeypatch.delenv("PEGBOARD_DISABLE_PLUGINS", raising=False)
    monkeypatch.setenv("PEGBOARD_PLUGINS", "")


@pytest.fixture
def plugin_registry(no_plugins: None) -> Callable[[Mapping[tuple[str, str], PluginSpec]], Registry]:
    """Return a function that makes a registry of front doors by (kind, name); nothing else is in it."""
    from pegboard.plugins.load import Registry

    return Registry.of


@pytest.fixture
def plugin_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plugins: None) -> Iterator[Site]:
    """A place to install distributions that only this test sees; all others are blocked."""
    from pegboard_sdk.site import Site

    place = Site(tmp_path / "site", monkeypatch)
    yield place
    place.forget()


@pytest.fixture
def torch_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes metadata tell, here and in processes started from here, of another build of torch.

    It takes a version and, by kind of accelerator as in torch's version file, that of the toolkit: ("2.11.0", cuda="13.0"). What is
    imported stays the torch that is installed.
    """

    def built(version: str, **kinds: str) -> None:
        folder = tmp_path / f"torch-{version}"
        for path in (folder / "torch", folder / f"torch-{version}.dist-info"):
            path.mkdir(parents=True, exist_ok=True)
        (path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        known = {"cuda": None, "hip": None, "xpu": None, **kinds}
        lines = [
            f"__version__ = {version!r}",
            "debug = False",
            *(f"{kind}: str | None = {v!r}" for kind, v in known.items()),
        ]
        (folder / "torch" / "version.py").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    return built


@pytest.fixture
def tiny_model() -> BuiltModel:
    """A model of two layers with random float64 weights, built for training on the host."""
    from pegboard_sdk.toys.model import random_model

    return random_model()


@pytest.fixture
def tiny_tokenizer() -> TinyTokenizer:
    """A tokenizer of bytes with the vocabulary of the tiny model."""
    from pegboard_sdk.toys.tokenizer import TinyTokenizer

    return TinyTokenizer()


@pytest.fixture
def host_platform() -> Platform:
    """The host as a platform."""
    from pegboard_sdk.toys.platform import HostPlatform

    return HostPlatform()


@pytest.fixture
def simulated_device() -> Iterator[SimulatedDevice]:
    """A device that computes on the host and counts what it is given; its tensors can be made while the test runs."""
    from pegboard_sdk.simulated import SimulatedDevice

    with SimulatedDevice() as device:
        yield device


@pytest.fixture
def peg(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run `peg` in this process."""
    from pegboard_sdk.peg import runner

    return runner(capsys)
