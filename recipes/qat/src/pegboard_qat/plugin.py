"""Front door of the recipe."""

from pegboard.plugins.spec import RecipeSpec

SPEC = RecipeSpec(target="pegboard_qat.recipe:TrainRounded", schema="pegboard_qat.config:QatConfig", objective="sft")
