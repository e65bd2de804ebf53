"""Front door of the `gguf` format."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="format",
    target="pegboard_gguf.files:GgufFormat",
    capabilities={"suffixes": [".gguf"]},
)
