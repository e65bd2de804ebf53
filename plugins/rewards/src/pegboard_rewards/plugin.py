"""Front doors of the rewards."""

from pegboard.plugins.spec import PluginSpec

GSM8K = PluginSpec(
    kind="reward", target="pegboard_rewards.exact:ExactAnswer", schema="pegboard_rewards.options:ExactOptions"
)
PATTERN = PluginSpec(
    kind="reward", target="pegboard_rewards.pattern:Pattern", schema="pegboard_rewards.options:PatternOptions"
)
