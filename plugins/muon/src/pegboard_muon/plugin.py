"""Front door of the optimizer."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="optimizer",
    target="pegboard_muon.optimizer:MuonFactory",
    schema="pegboard_muon.options:MuonOptions",
)
