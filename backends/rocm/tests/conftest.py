"""Machines with AMD GPUs, as the files that their kernel drivers show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GIB = 1 << 30
PROCESSOR = """\
cpu_cores_count 64
simd_count 0
mem_banks_count 1
caches_count 0
io_links_count 2
gfx_target_version 0
vendor_id 0
device_id 0
location_id 0
domain 0
drm_render_minor 0
unique_id 0
"""
CARD = """\
cpu_cores_count 0
simd_count {simds}
mem_banks_count 1
io_links_count 1
max_waves_per_simd 8
lds_size_in_kb 64
wave_front_size 64
simd_per_cu 4
gfx_target_version {version}
vendor_id 4098
device_id {device}
location_id {location}
domain 0
drm_render_minor {minor}
num_xcc {xcc}
local_mem_size 0
unique_id {unique}
"""
SYSTEM_MEMORY = "heap_type 0\nsize_in_bytes 540833480704\nflags 0\nwidth 64\nmem_clk_max 3200\n"
CARD_MEMORY = "heap_type 1\nsize_in_bytes {size}\nflags 0\nwidth 4096\nmem_clk_max 1600\n"

Node = tuple[int, int, int, int, int]
"""gfx_target_version, device_id, SIMD units, GiB, unique_id."""
MI250X: Node = (90010, 29704, 440, 64, 0xB3A1C0DE00000010)
MI300X: Node = (90402, 29857, 1216, 192, 0xF00DFACE00000001)
MI300X_PART: Node = (90402, 29857, 152, 24, 0xF00DFACE00000001)
RX_7900: Node = (110000, 29772, 384, 24, 0xCAFE000000000042)
RYZEN: Node = (100306, 5056, 4, 1, 0)
MACHINES: dict[str, list[Node]] = {
    "mi250x": [MI250X, (*MI250X[:4], MI250X[4] + 1)],
    "mi300x-spx": [MI300X, (*MI300X[:4], MI300X[4] + 1)],
    "mi300x-cpx": [MI300X_PART] * 8,
    "ryzen-and-rx7900": [RX_7900, RYZEN],
    "ryzen": [RYZEN],
    "none": [],
}

Build = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_built: Callable[..., None]) -> Build:
    """Return a function that makes a root with a machine's files. without: names of files below dev/ that are not there."""
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
        monkeypatch.delenv(name, raising=False)
    torch_built("2.12.0", hip="7.2.1")

    def build(name: str, *, without: tuple[str, ...] = ()) -> Path:
        root = tmp_path / name
        files = {"sys/class/kfd/kfd/topology/nodes/0/properties": PROCESSOR, "dev/kfd": ""}
        files["sys/class/kfd/kfd/topology/nodes/0/mem_banks/0/properties"] = SYSTEM_MEMORY
        for number, (version, device, simds, size, unique) in enumerate(MACHINES[name], 1):
            folder = f"sys/class/kfd/kfd/topology/nodes/{number}"
            facts = {
                "version": version,
                "device": device,
                "simds": simds,
                "unique": unique,
                "xcc": max(1, simds // 152),
            }
            files[f"{folder}/properties"] = CARD.format(**facts, minor=127 + number, location=256 * number)
            files[f"{folder}/mem_banks/0/properties"] = CARD_MEMORY.format(size=size * GIB)
            files[f"dev/dri/renderD{127 + number}"] = ""
        for path, text in files.items():
            if path.removeprefix("dev/") not in without:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(text)
        return root

    return build
