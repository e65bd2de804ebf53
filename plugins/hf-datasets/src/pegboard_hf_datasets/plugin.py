"""Front doors of the sources."""

from pegboard.plugins.spec import PluginSpec

SCHEMA = "pegboard_hf_datasets.options:HubOptions"
SOURCE = PluginSpec(kind="source", target="pegboard_hf_datasets.source:HubSource", schema=SCHEMA)
STREAM = PluginSpec(kind="source", target="pegboard_hf_datasets.source:HubStream", schema=SCHEMA)
