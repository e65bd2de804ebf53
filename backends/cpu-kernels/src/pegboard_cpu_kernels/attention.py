"""Front door of the attention backend."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="attention", target="pegboard_cpu_kernels.backend:CpuAttention", probe="pegboard_cpu_kernels.library:probe"
)
