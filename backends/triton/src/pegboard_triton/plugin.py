"""Front door of the attention backend."""

from pegboard.plugins.spec import PluginSpec

ATTENTION = PluginSpec(
    kind="attention",
    target="pegboard_triton.attention.backend:TritonAttention",
    probe="pegboard_triton.attention.probe:probe",
)
