"""Front doors of the sources and transforms."""

from pegboard.plugins.spec import PluginSpec


def _source(target: str, schema: str) -> PluginSpec:
    return PluginSpec(kind="source", target=f"pegboard_datasets.{target}", schema=f"pegboard_datasets.options:{schema}")


def _transform(target: str, schema: str) -> PluginSpec:
    return PluginSpec(
        kind="transform", target=f"pegboard_datasets.{target}", schema=f"pegboard_datasets.options:{schema}"
    )


JSONL = _source("jsonl:JsonlSource", "JsonlOptions")
JSON = _source("jsonl:JsonSource", "JsonOptions")
CSV = _source("delimited:CsvSource", "CsvOptions")
TEXT = _source("text:TextSource", "TextOptions")

CHAT = _transform("chat:Chat", "ChatOptions")
SHAREGPT = _transform("chat:Chat", "ShareGptOptions")
INSTRUCT = _transform("chat:Instruct", "InstructOptions")
PREFERENCE = _transform("preference:Preference", "PreferenceOptions")
LABELS = _transform("labels:Labels", "LabelsOptions")
PROMPT = _transform("prompt:Prompt", "PromptOptions")
PLAIN = _transform("plain:PlainText", "PlainOptions")
