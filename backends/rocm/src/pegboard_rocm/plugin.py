from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="platform",
    target="pegboard_rocm.platform:RocmPlatform",
    probe="pegboard_rocm.probe:probe",
    priority=90,
)
