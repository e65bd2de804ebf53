"""Distributions written to a temporary folder, which are discovered and imported like any that pip installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_NOTE = "with open({log!r}, 'a') as _log:\n    print(__name__, file=_log)\n"


class Site:
    """A folder on the path that distributions are written to. Their modules note it when they are imported.

    Only what is added here is on the allow-list. modules: top-level names of the modules that were written.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.modules: set[str] = set()
        self._monkeypatch = monkeypatch
        self._log = folder / "imported.log"
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.delenv("PEGBOARD_DISABLE_PLUGINS", raising=False)
        monkeypatch.setenv("PEGBOARD_PLUGINS", "")

    def add(
        self,
        dist: str,
        plugins: Mapping[tuple[str, str], str],
        modules: Mapping[str, str] | None = None,
        *,
        version: str = "1.0",
        requires: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Install a distribution and put it on the allow-list, on which nothing else is.

        plugins: (kind, name) -> entry point. modules: dotted name -> source. files: path -> text.
        """
        info = self.folder / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        needs = [f"Requires-Dist: {line}" for line in requires]
        head = [
            "Metadata-Version: 2.1",
            f"Name: {dist}",
            f"Version: {version}",
            f"Summary: The {dist} of a test",
            *needs,
        ]
        (info / "METADATA").write_text("\n".join(head) + "\n\nSummary: not this line\n")
        groups: dict[str, list[str]] = {}
        for (kind, name), value in plugins.items():
            groups.setdefault(f"[pegboard.{kind}]", []).append(f"{name} = {value}")
        lines = [line for group, entries in groups.items() for line in (group, *entries)]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        for name, source in (modules or {}).items():
            self.module(name, source)
        for path, text in (files or {}).items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)
        self._monkeypatch.setenv("PEGBOARD_PLUGINS", f"{os.environ['PEGBOARD_PLUGINS']},{dist}")

    def module(self, name: str, source: str) -> None:
        """Write a module, and the packages that it is in."""
        parts = name.split(".")
        path = self.folder.joinpath(*parts[:-1], f"{parts[-1]}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in [p for p in path.parents if p != self.folder and self.folder in p.parents]:
            (parent / "__init__.py").touch()
        path.write_text(_NOTE.format(log=str(self._log)) + source)
        self.modules.add(parts[0])

    def imported(self) -> list[str]:
        """Return the modules that were imported, in this process or another, in order."""
        return self._log.read_text().split() if self._log.exists() else []

    def forget(self) -> None:
        """Drop the modules that were imported from here, so that another site may use their names."""
        for name in [name for name in sys.modules if name.partition(".")[0] in self.modules]:
            del sys.modules[name]
