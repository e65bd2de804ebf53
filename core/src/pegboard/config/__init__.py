"""Configuration: YAML files, `key=value` overrides, and validation in which a plugin checks its own part.

For the author of a recipe
--------------------------
`RecipeSpec.schema` names a pydantic model of the whole config. It forbids unknown keys, and a field that holds the choice
of a plugin is annotated with `PluginSection`:

    class ModelSection(PathSection):         # a bare string is its `path`
        dtype: str = "auto"

    class DataSection(OptionsSection):       # keys of its own, the rest are options of a source
        kind = "source"
        use: str = "jsonl"
        shuffle: bool = True

    class RunConfig(BaseModel):
        model_config = ConfigDict(extra="forbid")

        model: ModelSection
        data: DataSection
        optimizer: Annotated[Choice, PluginSection("optimizer")]  # a bare string is its `use`
        adapter: Annotated[Choice, PluginSection("adapter")] | None = None
        loggers: list[Annotated[Choice, PluginSection("logger")]] = []
        rewards: dict[str, Annotated[Choice, PluginSection("reward")]] = {}

`load_config` returns plain JSON values (dict, list, str, int, float, bool, None). Every plugin section comes back as
`{"use": NAME, **options}`, the options validated and completed with the defaults of the plugin's own schema, so that

    registry.create("optimizer", config["optimizer"])

needs nothing else, and so that the dumped file re-runs exactly. `RunConfig.model_validate(config)` on the returned value
gives the typed form back; plugin sections are then dicts that are taken as they are. A default of a plugin section is
validated only with `Field(validate_default=True)`; better to put it into `configs/default.yaml`.

Two keys belong to the core and must not be in the schema: `extends` (gone after loading) and `plugins`
(`plugins: {disabled: [NAME, ...]}`; kept in the returned value only when it is set).

For the author of a plugin
--------------------------
`PluginSpec.schema` is a pydantic model with `extra="forbid"` of the keys beside `use`; its module should not import torch.
The implementation is called with an instance of that model as its only argument, without argument when there is none.

For the author of a config
--------------------------
- `extends: default` or `extends: [default, ./mine.yaml]`: other configs of the same recipe by name, or files relative to
  this one. Later ones win over earlier ones, this file over all of them.
- Mappings merge, lists and values replace. A section that names another `use` starts afresh: the options of one plugin
  are not handed to another.
- A bare string for a section is its `path` (`model`, `data`) or its `use` (all others), also where it meets a mapping:
  `data=pairs.jsonl` keeps the rest of `data`.
- `use: module:Class` takes a class of yours, imported also from the working directory. It is called with the other keys
  as keyword arguments, or, when it has a class attribute `schema` (a pydantic model), with an instance of that.
- `use: DISTRIBUTION:NAME` picks one of two plugins that share a name.
- `???` marks a value that must be given; all that are missing are named at once. `${batch.size}` refers to another
  value, and `\\${` stands for the characters.
- Overrides: `a.b=c`, `loggers.0.every=5`, `~key` deletes. A value is text unless it is a number, true, false or null, or
  starts with `[`, `{`, `"` or `'` (then it is YAML).

Use: `load_config(registry, recipe, config=None, overrides=())` and `dump_config(config) -> str` (YAML text).
"""

from __future__ import annotations

from pegboard.config.compose import compose, list_configs
from pegboard.config.resolve import load_config
from pegboard.config.sections import Choice, OptionsSection, PathSection, PluginSection
from pegboard.config.text import dump_config, parse_config

__all__ = [
    "Choice",
    "OptionsSection",
    "PathSection",
    "PluginSection",
    "compose",
    "dump_config",
    "list_configs",
    "load_config",
    "parse_config",
]
