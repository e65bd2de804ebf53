"""Front doors of the recipe and its objective."""

from pegboard.plugins.spec import PluginSpec, RecipeSpec, RoleSpec

SPEC = RecipeSpec(
    target="pegboard_trainer.recipe:Train",
    schema="pegboard_reward.config:RewardConfig",
    objective="reward",
    roles=(RoleSpec("reward", trained=True, head="scalar"),),
)
OBJECTIVE = PluginSpec(
    kind="objective",
    target="pegboard_reward.objective:BradleyTerry",
    schema="pegboard_reward.options:RewardOptions",
)
