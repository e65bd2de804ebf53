from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="platform", target="pegboard_cpu.platform:CpuPlatform", capabilities={"host": True})
