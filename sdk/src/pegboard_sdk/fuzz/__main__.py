"""The command: starts workers, restarts those that die, keeps what they found."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pegboard.plugins.load import Registry
from pegboard_sdk.fuzz.targets import TARGETS, target_of

FOREVER = 1 << 40
GRACE = 60.0
"""Seconds that a worker may run beyond its deadline: an input, or the imports, may hold it up."""


@dataclass(slots=True)
class Report:
    """What became of a target's inputs."""

    accepted: int = 0
    refused: int = 0
    findings: dict[int, str] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """All that were read, or broken off."""
        return self.accepted + self.refused + len(self.findings)


def fuzz(name: str, first: int, last: int, *, workers: int, deadline: float) -> Report:
    """Read the inputs with seeds first … last - 1 in `workers` processes and return what became of them."""
    report = Report()
    with ThreadPoolExecutor(workers) as pool:
        shares = pool.map(lambda start: _share(name, first + start, last, workers, deadline), range(workers))
        for share in shares:
            report.accepted += share.accepted
            report.refused += share.refused
            report.findings |= share.findings
    return report


def _share(name: str, first: int, last: int, step: int, deadline: float) -> Report:
    """Read every `step`-th input in one process, and in another one from where that died."""
    report = Report()
    while first < last and time.time() < deadline:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "seed"
            place.write_bytes(first.to_bytes(8, "little"))
            command = [sys.executable, "-m", "pegboard_sdk.fuzz.worker", name, folder]
            command += [str(number) for number in (first, last, step, deadline)]
            ending, out, errors = _run(command, deadline)
            reached = int.from_bytes(place.read_bytes(), "little")
        finished = False
        for line in out.splitlines():
            told = json.loads(line)
            if "counts" in told:
                finished = True
                report.accepted += told["counts"]["accepted"]
                report.refused += told["counts"]["refused"]
            else:
                report.findings[told["seed"]] = told["told"]
        if finished:
            return report
        last_words = errors.strip().splitlines()[-3:]
        report.findings[reached] = "\n".join([f"the process ended with {ending}", *last_words])
        report.refused += max((reached - first) // step - len([s for s in report.findings if first <= s < reached]), 0)
        first = reached + step
    return report


def _run(command: list[str], deadline: float) -> tuple[str, str, str]:
    """Run a worker and return how it ended, and what it printed."""
    timeout = deadline - time.time() + GRACE if deadline < FOREVER else None
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        out = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
        return "a kill: it did not stop", out, ""
    return f"status {done.returncode}", done.stdout, done.stderr


def keep(folder: Path, name: str, report: Report, registry: Registry) -> None:
    """Write each input that was a finding into `folder`, and say what happened."""
    target = target_of(name)(registry)
    for seed, told in sorted(report.findings.items()):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name.replace(':', '-')}-{seed}-{target.file}"
        path.write_bytes(target.make(seed))
        print(f"\n{name}, seed {seed}: {path}\n{told}\nagain: {again(name, seed)}", flush=True)


def again(name: str, seed: int) -> str:
    """Return the command that reads one input again."""
    return f"python -m pegboard_sdk.fuzz --target {name} --first {seed} --inputs 1"


def main(arguments: list[str] | None = None) -> int:
    """Fuzz every target; 1 when there is a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m pegboard_sdk.fuzz", description="Feed hostile input to what reads files."
    )
    parser.add_argument("--inputs", type=int, help="inputs in all, shared among the targets")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument(
        "--target", action="append", metavar="NAME", help=f"{', '.join(TARGETS)}, or module:Class; may be repeated"
    )
    parser.add_argument("--first", type=int, default=1, help="seed of the first input")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs that are findings")
    args = parser.parse_args(arguments)
    if args.inputs is None and args.seconds is None:
        args.inputs = 10_000
    logger = logging.getLogger("pegboard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return _fuzz_all(args)
    finally:
        logger.setLevel(level)


def _fuzz_all(args: argparse.Namespace) -> int:
    """Fuzz the targets that `args` name, one after another."""
    registry = Registry.discover()
    names = args.target or list(TARGETS)
    absent = {name: told for name in names if (told := target_of(name)(registry).missing())}
    for name, told in absent.items():
        print(f"{name}: left out, {told}")
    names = [name for name in names if name not in absent]
    workers = min(len(os.sched_getaffinity(0)), 8) if args.inputs != 1 else 1
    findings = total = 0
    left = sum(target_of(name).share for name in names)
    for name in names:
        began = time.time()
        share = target_of(name).share / left
        left -= target_of(name).share
        last = args.first + (math.ceil((args.inputs - total) * min(share, 1.0)) if args.inputs is not None else FOREVER)
        deadline = began + args.seconds / len(names) if args.seconds is not None else float(FOREVER)
        report = fuzz(name, args.first, last, workers=workers, deadline=deadline)
        total += report.inputs
        findings += len(report.findings)
        keep(args.keep, name, report, registry)
        rate = report.inputs / max(time.time() - began, 1e-9)
        print(
            f"{name}: {report.inputs:,} inputs, {report.accepted:,} read, {report.refused:,} refused with an error, "
            f"{len(report.findings):,} findings, {rate:,.0f} inputs/s",
            flush=True,
        )
    print(f"{total:,} inputs, {findings:,} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
