from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="platform",
    target="pegboard_xpu.platform:XpuPlatform",
    probe="pegboard_xpu.probe:probe",
    priority=80,
)
