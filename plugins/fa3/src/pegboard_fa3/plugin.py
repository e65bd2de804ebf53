from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="attention",
    target="pegboard_fa3.backend:Fa3Attention",
    probe="pegboard_fa3.probe:probe",
)
