"""Front doors of the recipe and its objective."""

from pegboard.plugins.spec import PluginSpec, RecipeSpec, RoleSpec

SPEC = RecipeSpec(
    target="pegboard_trainer.recipe:Train",
    schema="pegboard_distill.config:DistillConfig",
    objective="distill",
    roles=(RoleSpec("policy", trained=True), RoleSpec("teacher")),
    batches="pegboard_distill.batches:make",
)
OBJECTIVE = PluginSpec(
    kind="objective",
    target="pegboard_distill.objective:DistillObjective",
    schema="pegboard_distill.options:DistillOptions",
)
