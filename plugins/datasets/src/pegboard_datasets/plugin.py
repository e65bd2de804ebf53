"""Front doors of the sources and transforms."""

from pegboard.plugins.spec import PluginSpec

JSONL = PluginSpec(
    kind="source", target="pegboard_datasets.jsonl:JsonlSource", schema="pegboard_datasets.options:JsonlOptions"
)
TEXT = PluginSpec(
    kind="source", target="pegboard_datasets.text:TextSource", schema="pegboard_datasets.options:TextOptions"
)

CHAT = PluginSpec(
    kind="transform", target="pegboard_datasets.chat:Chat", schema="pegboard_datasets.options:ChatOptions"
)
INSTRUCT = PluginSpec(
    kind="transform", target="pegboard_datasets.chat:Instruct", schema="pegboard_datasets.options:InstructOptions"
)
PLAIN = PluginSpec(
    kind="transform", target="pegboard_datasets.plain:PlainText", schema="pegboard_datasets.options:PlainOptions"
)
