"""Front doors of the recipe and its objective."""

from pegboard.plugins.spec import PluginSpec, RecipeSpec, RoleSpec

SPEC = RecipeSpec(
    target="pegboard_trainer.recipe:Train",
    schema="pegboard_grpo.config:GrpoConfig",
    objective="grpo",
    roles=(RoleSpec("policy", trained=True), RoleSpec("reference", optional=True, adapter_off=True)),
    batches="pegboard_grpo.groups:make",
)
OBJECTIVE = PluginSpec(
    kind="objective", target="pegboard_grpo.objective:GroupRelative", schema="pegboard_grpo.options:GrpoOptions"
)
