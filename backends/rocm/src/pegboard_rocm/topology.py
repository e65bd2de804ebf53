"""AMD GPUs as the kernel driver describes them in /sys/class/kfd, and which of them the environment leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pegboard.visible import chosen

NODES = Path("sys/class/kfd/kfd/topology/nodes")
VENDOR = 0x1002
_OF_THE_CARD = (1, 2)
"""Kinds of memory banks (heap_type) that are the card's own: public and private."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One compute device; a card has several where it is partitioned, or is made of several dies.

    target: as compilers name it, such as "gfx90a". memory: bytes of its own. unique: "GPU-" and 16 hexadecimal digits, as the runtime
    names it; empty where the card has no number. node: its render node below /dev.
    """

    target: str
    memory: int
    unique: str
    node: Path


def gpus(root: Path) -> list[Gpu]:
    """Return the GPUs in the runtime's order. A node whose files cannot be read belongs to another container."""
    folders = [path for path in (root / NODES).glob("*") if path.name.isdecimal()]
    found = []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        facts = _facts(folder / "properties")
        # Processors are nodes too: they have no SIMD units. Some kernels list other vendors' cards.
        if facts.get("simd_count", 0) and facts.get("vendor_id", VENDOR) == VENDOR and facts.get("gfx_target_version"):
            found.append(_gpu(folder, facts))
    return found


def visible(found: list[Gpu], environment: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """Return the GPUs that the environment leaves, in its order, and the setting that leaves none of them; empty when some are left.

    ROCR_VISIBLE_DEVICES comes first and numbers them anew; of what is left HIP_VISIBLE_DEVICES chooses, or, where that is not set,
    CUDA_VISIBLE_DEVICES, which HIP honours as well. GPU_DEVICE_ORDINAL is read for OpenCL alone.
    """
    names = [
        "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES",
    ]
    for name in names:
        value = environment.get(name)
        if value is None or not found:
            continue
        indices = chosen(value, [gpu.unique for gpu in found], repeats_end=name.startswith("ROCR"))
        if not indices:
            return [], f"{name}={value!r}"
        found = [found[index] for index in indices]
    return found, ""


def _gpu(folder: Path, facts: Mapping[str, int]) -> Gpu:
    version, banks = facts["gfx_target_version"], (folder / "mem_banks").glob("*/properties")
    memory = sum(bank.get("size_in_bytes", 0) for bank in map(_facts, banks) if bank.get("heap_type") in _OF_THE_CARD)
    # 90010 is 9.0.10, which compilers write in hexadecimal: gfx90a.
    target = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    unique = facts.get("unique_id", 0)
    node = Path("dri", f"renderD{facts.get('drm_render_minor', 128)}")
    return Gpu(target, memory or facts.get("local_mem_size", 0), f"GPU-{unique:016x}" if unique else "", node)


def _facts(file: Path) -> dict[str, int]:
    try:
        pairs = (line.split() for line in file.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
    except OSError:
        return {}  # refused: the devices of this container do not include it
