"""Front doors of the recipes, their objectives, and the command `data.reference`."""

from pegboard.plugins.spec import PluginSpec, RecipeSpec, RoleSpec

_TRAIN = "pegboard_trainer.recipe:Train"
_POLICY = RoleSpec("policy", trained=True)
_REFERENCE = RoleSpec("reference", optional=True, adapter_off=True)

DPO = RecipeSpec(
    target=_TRAIN,
    schema="pegboard_dpo.config:ReferenceConfig",
    objective="dpo",
    roles=(_POLICY, _REFERENCE),
    configs="configs/dpo",
)
KTO = RecipeSpec(
    target=_TRAIN,
    schema="pegboard_dpo.config:ReferenceConfig",
    objective="kto",
    roles=(_POLICY, _REFERENCE),
    configs="configs/kto",
)
ORPO = RecipeSpec(
    target=_TRAIN, schema="pegboard_dpo.config:PreferenceConfig", objective="orpo", configs="configs/orpo"
)
SIMPO = RecipeSpec(
    target=_TRAIN, schema="pegboard_dpo.config:PreferenceConfig", objective="simpo", configs="configs/simpo"
)

DPO_OBJECTIVE = PluginSpec(
    kind="objective", target="pegboard_dpo.pairs:DirectPreference", schema="pegboard_dpo.options:DpoOptions"
)
KTO_OBJECTIVE = PluginSpec(
    kind="objective", target="pegboard_dpo.kto:KahnemanTversky", schema="pegboard_dpo.options:KtoOptions"
)
ORPO_OBJECTIVE = PluginSpec(
    kind="objective", target="pegboard_dpo.pairs:OddsRatio", schema="pegboard_dpo.options:OrpoOptions"
)
SIMPO_OBJECTIVE = PluginSpec(
    kind="objective", target="pegboard_dpo.pairs:SimplePreference", schema="pegboard_dpo.options:SimpoOptions"
)

REFERENCE_COMMAND = PluginSpec(kind="command", target="pegboard_dpo.command:reference")
