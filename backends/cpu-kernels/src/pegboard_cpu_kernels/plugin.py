"""Front doors of the attention backend, and of the observer that tells `peg doctor` about the compiled library."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="hooks", target="pegboard_cpu_kernels.doctor:KernelsDoctor")

ATTENTION = PluginSpec(
    kind="attention", target="pegboard_cpu_kernels.backend:CpuAttention", probe="pegboard_cpu_kernels.library:probe"
)
