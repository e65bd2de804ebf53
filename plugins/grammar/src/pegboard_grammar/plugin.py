"""Front door of the `llguidance` grammar."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="grammar",
    target="pegboard_grammar.backend:LlguidanceBackend",
    schema="pegboard_grammar.options:Options",
)
