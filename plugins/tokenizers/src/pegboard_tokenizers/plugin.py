"""Front door of the `tokenizers` tokenizer."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="tokenizer", target="pegboard_tokenizers.loader:Loader")
