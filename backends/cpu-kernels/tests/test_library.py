from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pegboard_cpu_kernels import library
from pegboard_cpu_kernels.doctor import KernelsDoctor
from pegboard_cpu_kernels.plugin import SPEC
from pegboard_sdk.conformance import PluginSuite

ROOT = Path(__file__).parents[1]


class TestDoctor(PluginSuite):
    spec = SPEC


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_library_is_that_of_the_sources() -> None:
    record = json.loads(build_script().RECORD.read_text())
    assert "error" in record or record["sources"] == build_script().source_hash(), "run hatch_build.py"


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "0")
    assert library.find().library is None
    assert not library.probe().present
    assert "PEGBOARD_CPU_KERNELS=0" in KernelsDoctor().doctor()[0]


def test_the_doctor_says_what_it_runs_on() -> None:
    found = library.find()
    (line,) = KernelsDoctor().doctor()
    assert found.reason in line and ("none" in line) == (found.library is None)


def test_a_machine_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = build_script()
    for name in ("LIBRARY", "RECORD"):
        monkeypatch.setattr(script, name, tmp_path / getattr(script, name).name)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    assert not script.build(said.append)
    assert "no C compiler" in said[0] and not script.LIBRARY.exists()
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert "install a C compiler" in library._why()
    monkeypatch.setenv("PEGBOARD_REQUIRE_KERNELS", "1")
    with pytest.raises(SystemExit, match="no C compiler"):
        script.build(said.append)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = build_script()
    for name in ("LIBRARY", "RECORD"):
        monkeypatch.setattr(script, name, tmp_path / getattr(script, name).name)
    monkeypatch.setenv("CC", "false")
    assert not script.build(lambda line: None)
    assert "`false --version` failed" in json.loads(script.RECORD.read_text())["error"]


def test_an_absent_or_foreign_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    assert "there is no lib" in library._why()
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"not a library")
    monkeypatch.setattr(library, "_FILE", wrong)
    assert "cannot be loaded" in library._load.__wrapped__().reason


@pytest.mark.skipif(library.find().library is None, reason="there is no library")
def test_instruction_sets_can_be_chosen_up_to_the_best() -> None:
    lib: ctypes.CDLL = library.find().library  # type: ignore[assignment]
    best = lib.peg_isa()
    try:
        assert [lib.peg_set_isa(isa) for isa in range(4)] == [min(isa, best) for isa in range(4)]
    finally:
        assert lib.peg_set_isa(-1) == best


def test_finding_it_imports_no_torch() -> None:
    code = "import sys, pegboard_cpu_kernels.library as l; l.probe(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.split() == ["False", "False"], done.stderr
