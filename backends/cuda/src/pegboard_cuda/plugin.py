from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="platform",
    target="pegboard_cuda.platform:CudaPlatform",
    probe="pegboard_cuda.probe:probe",
    priority=100,
)

CUDNN = PluginSpec(
    kind="attention",
    target="pegboard_cuda.cudnn:CudnnAttention",
    probe="pegboard_cuda.probe:probe",
)
