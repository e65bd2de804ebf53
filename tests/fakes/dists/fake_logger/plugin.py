from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="logger", target="fake_logger.notebook:Notebook")
