"""Front doors of the `hf` format and the `download` command."""

from pegboard.plugins.spec import PluginSpec

FORMAT = PluginSpec(
    kind="format",
    target="pegboard_hub.files:HfFormat",
    capabilities={"markers": ["config.json"], "ids": True},
)
DOWNLOAD = PluginSpec(kind="command", target="pegboard_hub.command:download")
