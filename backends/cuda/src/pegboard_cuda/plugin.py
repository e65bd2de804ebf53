from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="platform",
    target="pegboard_cuda.platform:CudaPlatform",
    probe="pegboard_cuda.probe:probe",
    priority=100,
)
