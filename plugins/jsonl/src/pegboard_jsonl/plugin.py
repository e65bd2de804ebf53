"""Front door of the `jsonl` logger."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="logger", target="pegboard_jsonl.logger:JsonlLogger")
