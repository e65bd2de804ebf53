"""Every kernel compiles for every target without a GPU. A process of its own: this one may interpret kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pegboard_triton import aot
from pegboard_triton.aot import TARGETS, chosen, main, target

WHOLE = ("cuda:90", "hip:gfx942")
"""Targets that every variant is compiled for; for the others, one of those that differ in types alone."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("text", TARGETS)
def test_every_kernel_compiles(text: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what was compiled before proves nothing
    command = [sys.executable, "-m", "pegboard_triton.aot", text, "--jobs", "2"]
    command += [] if text in WHOLE else ["--thin"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_one_variant_of_each_kind() -> None:
    whole, thin = list(chosen()), list(chosen(thin=True))
    assert {variant.kernel.fn for variant in thin} == {variant.kernel.fn for variant in whole}
    assert len(thin) < len(whole)
    assert [variant.name for variant in chosen("silu_mul[bf16]")] == ["silu_mul[bf16]"]


def test_what_fails_is_told_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_variant(variant: aot.Variant, text: str) -> bytes:
        if text == "cuda:80":
            raise ValueError("it needs 200,000 bytes of shared memory, and cuda:80 has 163 KiB")
        return bytes(7)

    monkeypatch.setattr(aot, "compile_variant", compile_variant)
    assert main(["cuda:80", "cuda:90", "--only", "silu_mul[bf16]"]) == 1
    said = capsys.readouterr()
    assert said.out == "silu_mul[bf16] cuda:90: 7 bytes\n"
    assert said.err.startswith("silu_mul[bf16] cuda:80: ValueError: it needs 200,000 bytes")
    assert main(["cuda:90", "--only", "no such kernel"]) == 0


@pytest.mark.parametrize("text", ["cuda", "cuda:hopper", "hip:90", "vulkan:1"])
def test_unknown_targets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown target"):
        target(text)
