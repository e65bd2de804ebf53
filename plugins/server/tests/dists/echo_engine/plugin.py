"""Front door of the engine `echo`."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="engine", target="echo_engine.engine:EchoEngine", schema="echo_engine.engine:EchoOptions")
