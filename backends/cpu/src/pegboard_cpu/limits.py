"""What this process may use of the machine: memory and processors under container limits."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path("/")


def total_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may use in all: the machine's, or a cgroup's limit when that is lower."""
    return min([_meminfo(root, "MemTotal"), *_cgroup_limits(root)])


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that can still be allocated without swapping or being killed."""
    free = [_meminfo(root, "MemAvailable")]
    for folder in _cgroup_folders(root):
        limit, used = _limit(folder), _used(folder)
        if limit is not None and used is not None:
            free.append(max(0, limit - used + _reclaimable(folder)))
    return min(free)


def usable_cpus(root: Path = _ROOT) -> int:
    """Processors that this process may use: its affinity, cut by a cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroup_folders(root):
        quota = _quota(folder)
        if quota is not None:
            count = min(count, max(1, round(quota)))
    return count


def _meminfo(root: Path, key: str) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or hidden: ask the C library instead
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_folders(root: Path) -> list[Path]:
    """Folders of this process's cgroup and its parents, version 2 and 1; those that exist."""
    base, folders = root / "sys/fs/cgroup", []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for hierarchy in (
            [base] if not controllers else [base / c for c in ("memory", "cpu") if c in controllers.split(",")]
        ):
            folder = hierarchy / path.lstrip("/")
            while True:
                folders.append(folder)
                if folder == hierarchy or hierarchy not in folder.parents:
                    break
                folder = folder.parent
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None  # absent, or the word "max": no limit


def _limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        value = _number(folder / name)
        if value is not None and value < 1 << 60:  # version 1 writes a huge number for "none"
            return value
    return None


def _cgroup_limits(root: Path) -> list[int]:
    return [limit for folder in _cgroup_folders(root) if (limit := _limit(folder)) is not None]


def _used(folder: Path) -> int | None:
    current = _number(folder / "memory.current")
    return current if current is not None else _number(folder / "memory.usage_in_bytes")


def _reclaimable(folder: Path) -> int:
    """Page cache that counts as used but is given back on demand."""
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    except (OSError, ValueError):
        pass  # no statistics: count nothing as reclaimable
    return 0


def _quota(folder: Path) -> float | None:
    try:
        words = (folder / "cpu.max").read_text().split()
        if words[0] != "max":
            return int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError):
        pass  # version 1, or no quota here
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None
