"""Front door of the observer that tells `peg doctor` about the compiled library."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="hooks", target="pegboard_cpu_kernels.doctor:KernelsDoctor")
