"""Front door of the `ngram` speculator."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="speculator",
    target="pegboard_ngram.speculator:NgramSpeculator",
    schema="pegboard_ngram.options:Options",
)
