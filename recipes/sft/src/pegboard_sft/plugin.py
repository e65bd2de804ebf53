"""Front doors of the recipe and its objective."""

from pegboard.plugins.spec import PluginSpec, RecipeSpec

SPEC = RecipeSpec(target="pegboard_trainer.recipe:Train", schema="pegboard_trainer.config:TrainConfig", objective="sft")
OBJECTIVE = PluginSpec(kind="objective", target="pegboard_sft.objective:SupervisedObjective")
