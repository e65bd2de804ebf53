"""Front doors of the commands, the launcher, the optimizer and the schedules."""

from pegboard.plugins.spec import PluginSpec

ADAMW = PluginSpec(
    kind="optimizer", target="pegboard_trainer.adamw:AdamWFactory", schema="pegboard_trainer.options:AdamWOptions"
)

DATA_PREVIEW = PluginSpec(kind="command", target="pegboard_trainer.inspect.command:preview")
DATA_STATS = PluginSpec(kind="command", target="pegboard_trainer.inspect.command:stats")

LOCAL = PluginSpec(kind="launcher", target="pegboard_trainer.launch:LocalLauncher")

CONSTANT = PluginSpec(
    kind="schedule", target="pegboard_trainer.schedules:Constant", schema="pegboard_trainer.options:ConstantOptions"
)
COSINE = PluginSpec(
    kind="schedule", target="pegboard_trainer.schedules:Cosine", schema="pegboard_trainer.options:DecayOptions"
)
LINEAR = PluginSpec(
    kind="schedule", target="pegboard_trainer.schedules:Linear", schema="pegboard_trainer.options:DecayOptions"
)
WSD = PluginSpec(
    kind="schedule", target="pegboard_trainer.schedules:WarmupStableDecay", schema="pegboard_trainer.options:WsdOptions"
)
