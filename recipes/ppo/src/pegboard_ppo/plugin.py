"""Front doors of the recipe and its objective."""

from pegboard.plugins.spec import PluginSpec, RecipeSpec, RoleSpec

SPEC = RecipeSpec(
    target="pegboard_trainer.recipe:Train",
    schema="pegboard_ppo.config:PpoConfig",
    objective="ppo",
    roles=(
        RoleSpec("policy", trained=True),
        RoleSpec("value", trained=True, head="scalar"),
        RoleSpec("reference", optional=True, adapter_off=True),
        RoleSpec("reward", head="scalar", optional=True),
    ),
    batches="pegboard_ppo.episodes:make",
)
OBJECTIVE = PluginSpec(
    kind="objective", target="pegboard_ppo.objective:Proximal", schema="pegboard_ppo.options:PpoOptions"
)
