"""Intel GPUs as a platform."""

from __future__ import annotations

from functools import cache

import torch

from pegboard_triton.platform import TritonPlatform


class XpuPlatform(TritonPlatform):
    """The visible Intel GPUs; each tile is a device, unless ZE_FLAT_DEVICE_HIERARCHY is COMPOSITE."""

    kind = "xpu"
    label = "xpu"
    visible = "ZE_AFFINITY_MASK, then ONEAPI_DEVICE_SELECTOR,"
    graph_class = "XPUGraph"
    target_kind = "xpu"

    def foreign(self) -> str:
        return (
            "" if torch.version.xpu else f"torch {torch.__version__} is built without XPU support: install an XPU build"
        )

    def target(self, index: int) -> str:
        """Return the device's name: Triton for Intel compiles for the very device, not for a named generation."""
        name: str = torch.xpu.get_device_name(index)
        return name

    def fast_dtypes(self, index: int) -> set[str]:
        # With units for matrices (DPAS) come their bfloat16 products; without, bfloat16 is converted and multiplied in float32.
        units = torch.xpu.get_device_capability(index).get("has_subgroup_matrix_multiply_accumulate", False)
        return {"bf16"} if units else set()

    def captures(self, index: int) -> bool:
        return super().captures(index) and _graphs_work(index)

    def communication_backend(self) -> str:
        return "xccl"


@cache
def _graphs_work(index: int) -> bool:
    """Whether a graph can be captured and replayed: beside torch's class it needs a driver with support for SYCL graphs."""
    try:
        with torch.xpu.device(index):
            x, graph = torch.zeros(1, device="xpu"), torch.xpu.XPUGraph()
            with torch.xpu.graph(graph):
                x.add_(1)
            graph.replay()
            torch.xpu.synchronize()
    except RuntimeError:
        return False
    return True
