"""The CPU as a platform."""

from __future__ import annotations

import platform as host
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pegboard.errors import DeviceError
from pegboard.host import host_zeros
from pegboard.interfaces.platform import DeviceInfo, Graph, Phase, Platform
from pegboard.types import AttentionSpec
from pegboard_cpu import kernels, limits


class CpuPlatform(Platform):
    """The host's processors, as one device."""

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo(0, _processor_name(), limits.total_memory(), limits.available_memory())]

    def device(self, index: int = 0) -> torch.device:
        if index != 0:
            raise DeviceError(f"there is no cpu device {index}", fix="the CPU is one device: use device 0")
        return torch.device("cpu")

    def capabilities(self, index: int = 0) -> frozenset[str]:
        graphs = () if kernels.library() is None else ("graphs",)
        return frozenset(("bf16", *graphs) if _fast_bfloat16() else graphs)

    def default_dtype(self, index: int = 0) -> torch.dtype:
        return torch.bfloat16 if _fast_bfloat16() else torch.float32

    def attention_preference(self, phase: Phase, spec: AttentionSpec) -> tuple[str, ...]:
        return ("cpu", "sdpa") if phase != "train" and kernels.library() is not None else ("sdpa",)

    def kernels(self, phase: Phase, dtype: torch.dtype, index: int = 0) -> Mapping[str, Callable[..., Any]]:
        wide = dtype == torch.float16 or (dtype == torch.bfloat16 and not _fast_bfloat16())
        replaced: dict[str, Callable[..., Any]] = (
            {"linear": kernels.linear, "add_product_": kernels.add_product_} if wide else {}
        )
        if phase != "train":
            replaced |= {"rms_norm": kernels.rms_norm, "add_rms_norm": kernels.add_rms_norm}
        return replaced | kernels.compiled(dtype, replaced, phase)

    def configure(self, *, threads: int | None = None) -> None:
        torch.set_num_threads(threads or limits.usable_cpus())

    def graph_memory(self, index: int = 0) -> object | None:
        """Return an arena of the compiled library's programs."""
        if kernels.library() is None:
            return None
        from pegboard_cpu_kernels.arena import Arena

        return Arena()

    def reserve(self, num_bytes: int, index: int = 0) -> Tensor | None:
        """Return memory on huge pages."""
        return host_zeros((num_bytes,), torch.uint8, huge=True)

    def capture(self, work: Callable[[], None], index: int = 0, memory: Any = None) -> Graph:
        """Record `work` for another run. Raises DeviceError where that is not possible."""
        found = kernels.library()
        if found is None:
            return super().capture(work, index)
        from pegboard_cpu_kernels.program import CannotRecord, record

        try:
            return record(found, work, memory)
        except CannotRecord as error:
            raise DeviceError(f"this work cannot be recorded: {error}", fix="run it without graphs") from error

    def graph_batch(self, count: int) -> int:
        """Return `count`: a row that nobody needs would cost as much as any other."""
        return count

    def synchronize(self, index: int = 0) -> None:
        """Nothing to wait for: torch computes on the CPU before it returns."""


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AVX-512 BF16, AMX, or the Arm extension)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in probes if hasattr(torch.cpu, name))


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return host.processor() or host.machine()
