from pegboard.plugins.spec import PluginSpec, RecipeSpec

OBJECTIVE = PluginSpec(kind="objective", target="fake_objective.squares:Squares")
RECIPE = RecipeSpec(
    target="pegboard_trainer.recipe:Train", schema="pegboard_trainer.config:TrainConfig", objective="squares"
)
