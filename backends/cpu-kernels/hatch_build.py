"""Compiles src/pegboard_cpu_kernels/c into one shared library beside the package's modules.

hatchling runs it for wheels and editable installations; `python hatch_build.py` does the same by hand after a change of the C
sources. No compiler, or one that fails, fails nothing: build.json then says why there is no library, and `peg doctor` tells it.
PEGBOARD_REQUIRE_KERNELS=1 makes that an error, for those who publish wheels. Standard library alone, and hatchling where it runs us.

A source named *_isa.c is compiled once for each instruction set, with the macro PEG_ISA; every other one once, portably.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    BuildHookInterface = object

PACKAGE = Path(__file__).resolve().parent / "src" / "pegboard_cpu_kernels"
SOURCES = PACKAGE / "c"
LIBRARY = PACKAGE / ("libpegboard_cpu_kernels" + (".dylib" if sys.platform == "darwin" else ".so"))
RECORD = PACKAGE / "build.json"

# Contraction would make a result depend on how a loop was unrolled; errno of maths functions stops vectors.
FLAGS = "-std=c11 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -pthread -Wall -Wextra".split()
AVX2 = "-mavx2 -mfma -mf16c".split()
AVX512 = [*AVX2, *"-mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512".split()]
X86 = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"]}


class BuildError(Exception):
    """There is no library, and this is why."""


def source_hash() -> str:
    """Return a hash of the C sources and of this file; build.json keeps that of the library."""
    digest = hashlib.sha256()
    for path in [*sorted(SOURCES.glob("*.[ch]")), Path(__file__).resolve()]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def compiler() -> list[str]:
    """Return the command of the C compiler: $CC, or the first of cc, gcc and clang. Raises BuildError when there is none."""
    if os.environ.get("CC"):
        command = shlex.split(os.environ["CC"])
        if shutil.which(command[0]) is None:
            raise BuildError(f"the compiler {command[0]!r}, which $CC names, is not installed")
        return command
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C compiler (cc, gcc or clang) was there when it was installed")


def run(command: list[str]) -> str:
    """Run a command and return its output. Raises BuildError with the first lines of what it said when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = "; ".join((done.stderr or done.stdout).strip().splitlines()[:3])
        raise BuildError(f"`{' '.join(command)}` failed: {said}")
    return done.stdout


def instruction_sets(cc: list[str], work: Path) -> dict[str, list[str]]:
    """Return those that the compiler knows, with their flags; "portable" is always one."""
    found: dict[str, list[str]] = {"portable": []}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return found
    probe = work / "probe.c"
    probe.write_text("#include <immintrin.h>\nint peg_probe(void) { return 0; }\n")
    for name, flags in X86.items():
        try:
            run([*cc, *FLAGS, *flags, "-c", str(probe), "-o", str(work / "probe.o")])
        except BuildError:
            continue
        found[name] = flags
    return found


def compile_library() -> dict[str, Any]:
    """Compile the library and return what build.json holds. Raises BuildError."""
    if sys.platform == "win32":
        raise BuildError("it is written for POSIX threads, which Windows lacks")
    # Taken first: a source that changes while they are compiled is compiled again the next time.
    cc, sources = compiler(), source_hash()
    version = run([*cc, "--version"]).splitlines()[0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sets = instruction_sets(cc, work)
        have = [f"-DPEG_HAVE_{name.upper()}" for name in sets]
        jobs = []
        for source in sorted(SOURCES.glob("*.c")):
            for name, flags in sets.items() if source.stem.endswith("_isa") else [("", [])]:
                isa = [f"-DPEG_ISA={name}", f"-DPEG_ISA_{name.upper()}", *flags] if name else []
                target = work / f"{source.stem}-{name}.o"
                jobs.append([*cc, *FLAGS, *have, *isa, "-c", str(source), "-o", str(target)])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(run, jobs))
        # A process that has the old file mapped keeps it: the new one takes its name.
        built = LIBRARY.with_name(f".{LIBRARY.name}.{os.getpid()}")
        try:
            run([*cc, "-shared", "-pthread", "-o", str(built), *(job[-1] for job in jobs), "-lm"])
            built.replace(LIBRARY)
        finally:
            built.unlink(missing_ok=True)
    return {"compiler": version, "instruction_sets": list(sets), "sources": sources}


def build(say: Any = print) -> bool:
    """Compile unless the library is up to date; write build.json; return whether there is a library."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if LIBRARY.is_file() and record.get("sources") == source_hash() and not record.get("error"):
        return True
    try:
        record = compile_library()
    except (BuildError, OSError) as error:
        if os.environ.get("PEGBOARD_REQUIRE_KERNELS") == "1":
            raise SystemExit(f"error: no library of kernels: {error}") from error
        LIBRARY.unlink(missing_ok=True)
        record = {"error": str(error)}
        say(f"pegboard-cpu-kernels has no library: {error}")
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return "error" not in record


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc]
    """Puts the library into a wheel, whose tag then names the platform and no Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name == "wheel" and build(self.app.display_warning):
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{tag}"


if __name__ == "__main__":
    sys.exit(0 if build() else 1)
