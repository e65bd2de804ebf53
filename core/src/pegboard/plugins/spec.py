"""What a plugin's front door holds.

Standard library only: front doors import this module and nothing else of the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found, without importing anything heavy.

    present: the thing (a device, a library) is on this machine.
    usable: it works. `present and not usable` means broken: an automatic choice stops there instead of passing it by.
    reason: one line for people, such as "2 devices, driver 550.54" or "no device files under /dev".
    """

    present: bool
    usable: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSpec:
    """A plugin's front door: where its implementation is and what it can do, as data.

    kind: a key of `pegboard.plugins.groups.GROUPS`.
    target: "module:attribute" of the implementation, imported only when the plugin is chosen.
    interface: version of the kind's interface that the implementation follows.
    schema: "module:Model" of a pydantic model for this plugin's part of a config; None means that it takes no options.
    probe: "module:function" that returns a `Probe` and does not import torch; None means always present and usable.
    priority: higher is tried first by an automatic choice.
    capabilities: facts that a choice is made by before the implementation is imported, JSON values only, such as
        {"architectures": ["AcmeForCausalLM"]} for a model family or {"suffixes": [".acme"]} for a format.
    """

    kind: str
    target: str
    interface: int = 1
    schema: str | None = None
    probe: str | None = None
    priority: int = 0
    capabilities: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSpec(PluginSpec):
    """A recipe: an objective, the roles of the models that it needs, and a folder of ready configs.

    objective: name of the objective plugin.
    roles: model roles, of which the first is trained; see `pegboard.interfaces.objective`.
    configs: folder of `*.yaml` inside the package that holds the front door; `default.yaml` is used when none is named.
    """

    kind: str = "recipe"
    objective: str = ""
    roles: tuple[str, ...] = ("policy",)
    configs: str = "configs"
