"""The fuzzer finds what it is for: exceptions, hangs, memory and dead processes; and first of all accepts valid files."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from pegboard.errors import ConfigError, ModelError
from pegboard.plugins.load import Registry
from pegboard_sdk.fuzz import worker
from pegboard_sdk.fuzz.__main__ import fuzz, main
from pegboard_sdk.fuzz.bytes import mutated
from pegboard_sdk.fuzz.samples import gguf_sample, safetensors_sample
from pegboard_sdk.fuzz.targets import TARGETS, Target, target_of

BAD_READER = """
import ctypes, os, time
from pegboard.errors import ModelError
from pegboard_sdk.fuzz.targets import Target
class Bad(Target):
    name, file = "bad", "input"
    def make(self, seed):
        return seed.to_bytes(8, "little")
    def read(self, path, seed):
        seed = int.from_bytes(path.read_bytes(), "little")
        if seed == 3: raise KeyError("no such thing")
        if seed == 5: os._exit(7)
        if seed == 6: ctypes.string_at(0)
        if seed == 8: bytearray(1 << 30)
        if seed % 2: raise ModelError("odd", fix="make it even")
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.mark.parametrize("name", ["safetensors", "gguf"])
def test_valid_files_are_accepted(registry: Registry, name: str, tmp_path: Path) -> None:
    target = target_of(name)(registry)
    sample = {"safetensors": safetensors_sample, "gguf": gguf_sample}[name]
    for seed in range(5):
        path = tmp_path / f"{seed}-{target.file}"
        path.write_bytes(sample(random.Random(seed)).data)
        target.read(path, seed)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_an_input_follows_from_its_seed(registry: Registry, name: str) -> None:
    target = target_of(name)(registry)
    inputs = [target.make(seed) for seed in range(50)]
    assert inputs == [target.make(seed) for seed in range(50)]
    assert len(set(inputs)) > 25


def test_mutations_change_the_file() -> None:
    sample = safetensors_sample(random.Random(0))
    changed = [mutated(sample, random.Random(seed)) != sample.data for seed in range(100)]
    assert sum(changed) > 80
    assert mutated(sample, random.Random(1)) == mutated(sample, random.Random(1))


class Slow(Target):
    """Never ends, and lets no exception pass."""

    name, file = "slow", "input"

    def make(self, seed: int) -> bytes:
        return b""

    def read(self, path: Path, seed: int) -> None:
        while True:
            try:
                time.sleep(1)
            except Exception:
                continue


class Refusing(Slow):
    """Raises what a reader may raise, or may not."""

    def read(self, path: Path, seed: int) -> None:
        raise ModelError("no", fix="yes") if seed else IndexError("list index out of range")


def test_verdicts(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.complaint(Refusing(registry), tmp_path, 1) == ("refused", "")
    verdict, told = worker.complaint(Refusing(registry), tmp_path, 0)
    assert (verdict, "IndexError: list index out of range" in told) == ("finding", True)
    monkeypatch.setattr(worker, "SECONDS_EACH", 0.05)
    assert worker.complaint(Slow(registry), tmp_path, 0) == ("finding", "not read within 0.05 s")


def test_workers_that_die_or_take_memory_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad_reader.py").write_text(BAD_READER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    report = fuzz("bad_reader:Bad", 1, 11, workers=1, deadline=time.time() + 600)
    assert sorted(report.findings) == [3, 5, 6, 8]
    assert "KeyError" in report.findings[3]
    assert "status 7" in report.findings[5]
    assert "MemoryError" in report.findings[8]
    assert report.inputs == 10
    assert main(["--target", "bad_reader:Bad", "--first", "3", "--inputs", "1", "--keep", str(tmp_path / "kept")]) == 1
    said = capsys.readouterr().out
    assert "python -m pegboard_sdk.fuzz --target bad_reader:Bad --first 3 --inputs 1" in said
    assert (tmp_path / "kept" / "bad_reader-Bad-3-input").read_bytes() == (3).to_bytes(8, "little")
    assert main(["--target", "bad_reader:Bad", "--first", "2", "--inputs", "1"]) == 0


def test_unknown_target() -> None:
    with pytest.raises(ConfigError, match=r"'ggu' \(did you mean 'gguf'\?\)"):
        target_of("ggu")
