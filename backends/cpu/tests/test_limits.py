from __future__ import annotations

import os
from pathlib import Path

import pytest

from pegboard_cpu import limits

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {9 * GIB // 1024} kB\n"}
STAT = f"anon 5\ninactive_file {GIB // 2}\n"


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    root = write(tmp_path, MEMINFO)
    assert limits.total_memory(root) == 16 * GIB
    assert limits.available_memory(root) == 9 * GIB


def test_version_2_limit_of_a_parent_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/pod/container\n",
            "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": STAT,
            "sys/fs/cgroup/pod/container/memory.max": "max\n",
        },
    )
    assert limits.total_memory(root) == 4 * GIB
    assert limits.available_memory(root) == GIB + GIB // 2


def test_version_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "5:cpu,cpuacct:/c\n4:memory:/c\n3:devices:/c\n",
            "sys/fs/cgroup/memory/c/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/c/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000\n",
        },
    )
    assert limits.total_memory(root) == 2 * GIB
    assert limits.available_memory(root) == 0
    assert limits.usable_cpus(root) == 1


@pytest.mark.parametrize(("quota", "wanted"), [("max 100000", None), ("150000 100000", 2), ("10000 100000", 1)])
def test_quota_of_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int | None) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert limits.usable_cpus(root) == (64 if wanted is None else wanted)


def test_unreadable_numbers_are_no_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path, {**MEMINFO, "proc/self/cgroup": "nonsense\n0::/x\n", "sys/fs/cgroup/x/memory.max": "a lot\n"}
    )
    assert limits.total_memory(root) == 16 * GIB


def test_this_machine() -> None:
    assert 0 < limits.available_memory() <= limits.total_memory()
    assert 1 <= limits.usable_cpus() <= (os.cpu_count() or 1)
