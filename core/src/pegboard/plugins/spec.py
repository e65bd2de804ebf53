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


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """A model of a recipe: "policy", "reference", "teacher", "value" or "reward".

    trained: whether its weights are trained; a frozen role gives no gradients.
    head: "lm" for logits over the vocabulary, "scalar" for one value a token.
    like: the role whose sections of the config count where this one's leave something out; empty for the recipe's first role.
    optional: without a section of its own in the config the role does not exist.
    adapter_off: without a section of its own it is the first role with its adapter off, if that has one.
    """

    name: str
    trained: bool = False
    head: str = "lm"
    like: str = ""
    optional: bool = False
    adapter_off: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSpec(PluginSpec):
    """A recipe: an objective, the roles of the models that it needs, and a folder of ready configs.

    objective: name of the objective plugin.
    roles: its models; the first is built from the config's `model`, `adapter` and `quantizer`, any other from the section of its name.
    batches: "module:function" that makes the batches from a trainer's setting, for data that comes from the models themselves;
        empty for batches packed from the data.
    configs: folder of `*.yaml` inside the package that holds the front door; `default.yaml` is used when none is named.
    """

    kind: str = "recipe"
    objective: str = ""
    roles: tuple[RoleSpec, ...] = (RoleSpec("policy", trained=True),)
    batches: str = ""
    configs: str = "configs"
