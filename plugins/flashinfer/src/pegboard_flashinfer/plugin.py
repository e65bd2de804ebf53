from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="attention",
    target="pegboard_flashinfer.backend:FlashInferAttention",
    probe="pegboard_flashinfer.probe:probe",
)
