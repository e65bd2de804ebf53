"""AMD GPUs as a platform. Torch names them "cuda", and offers them through the functions of that module."""

from __future__ import annotations

import torch

from pegboard_triton.platform import TritonPlatform

MATRIX_UNITS = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""Beginnings of the targets that multiply bfloat16 matrices in hardware."""
FNUZ = ("gfx94",)
"""Targets whose 8-bit floats are those without a negative zero (float8_e4m3fnuz)."""
OCP = ("gfx95", "gfx12")
"""Targets with the 8-bit floats of the Open Compute Project (float8_e4m3fn), as other vendors have them."""


class RocmPlatform(TritonPlatform):
    """The visible AMD GPUs, in the order that ROCR_VISIBLE_DEVICES and then HIP_VISIBLE_DEVICES leave them in."""

    kind = "cuda"
    label = "rocm"
    visible = "ROCR_VISIBLE_DEVICES, then HIP_VISIBLE_DEVICES,"
    graph_class = "CUDAGraph"
    target_kind = "hip"

    def foreign(self) -> str:
        return "" if torch.version.hip else f"torch {torch.__version__} is built without HIP: install a ROCm build"

    def target(self, index: int) -> str:
        """Return the device's compilation target without its features, such as "gfx90a"."""
        name: str = torch.cuda.get_device_properties(index).gcnArchName
        return name.partition(":")[0]

    def refusal(self, index: int) -> str:
        built = [arch.partition(":")[0] for arch in torch.cuda.get_arch_list()]
        target = self.target(index)
        # "gfx9-4-generic" is code for every gfx94x.
        families = tuple(arch.removesuffix("-generic").replace("-", "") for arch in built if arch.endswith("-generic"))
        if not built or target in built or target.startswith(families):
            return ""
        return f"it is a {target}, and torch {torch.__version__} is built for {', '.join(dict.fromkeys(built))}"

    def fast_dtypes(self, index: int) -> set[str]:
        groups = {"bf16": MATRIX_UNITS, "fp8": OCP, "fp8_fnuz": FNUZ}
        return {name for name, targets in groups.items() if self.target(index).startswith(targets)}

    def communication_backend(self) -> str:
        """Return "nccl": the name under which torch offers RCCL."""
        return "nccl"
