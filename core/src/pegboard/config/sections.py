"""Types for the schema of a recipe: sections whose keys belong to a plugin, and sections that may be a bare path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from pegboard.config.errors import SectionError
from pegboard.errors import ConfigError, PegboardError

if TYPE_CHECKING:
    from pegboard.plugins.load import Registry

Choice = dict[str, Any]
"""A validated plugin section: {"use": NAME, **options}."""


@dataclass(frozen=True, slots=True)
class PluginSection:
    """Annotation of a config field that holds the choice of a plugin.

    kind: a plugin kind. default: the plugin that is meant when the section does not say `use`.
    bare: the key that a bare string stands for, "use" or "path".
    The value becomes {"use": NAME, **options}, options validated and completed by the plugin's own schema. Without a
    registry in the validation context (`{"registry": registry}`) options are taken as they are.
    """

    kind: str
    default: str | None = None
    bare: str = "use"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        section = {"type": "object", "properties": {"use": {"type": "string"}}, "additionalProperties": True}
        return {"description": f"a plugin of kind {self.kind}", "anyOf": [{"type": "string"}, section]}

    def _validate(self, value: Any, info: ValidationInfo) -> Choice:
        try:
            use, options = self._split(value)
        except PegboardError as error:
            raise SectionError(error) from None
        registry: Registry | None = (info.context or {}).get("registry")
        return {"use": use, **(options if registry is None else _complete(registry, self.kind, use, options))}

    def _split(self, value: Any) -> tuple[str, dict[str, Any]]:
        from pegboard.plugins.load import split_choice

        section = {self.bare: value} if isinstance(value, str) else value
        if isinstance(section, Mapping) and "use" not in section and self.default is not None:
            section = {"use": self.default, **section}
        return split_choice(self.kind, section)


def _complete(
    registry: Registry, kind: str, use: str, options: dict[str, Any], beside: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options of a plugin with its defaults filled in.

    beside: other keys that stand in the same section. Raises SectionError.
    """
    schema: type[BaseModel] | None
    try:
        if registry.is_custom(kind, use):
            from pegboard.plugins.doors import import_custom

            schema = getattr(import_custom(kind, use), "schema", None)
            if schema is None:
                return options
        else:
            schema = registry.schema(kind, use)
        if schema is None:
            if options:
                raise ConfigError(
                    f"{kind} {use!r} takes no options, given: {', '.join(options)}", fix=f"remove {', '.join(options)}"
                )
            return {}
    except PegboardError as error:
        raise SectionError(error) from error
    try:
        return schema.model_validate(options).model_dump(mode="json")
    except ValidationError as error:
        raise SectionError(error, schema, beside) from None


class PathSection(BaseModel):
    """Base of a section with a `path`, for which a bare string stands."""

    model_config = ConfigDict(extra="forbid")

    path: str

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class OptionsSection(PathSection):
    """Base of a section with keys of its own and, beside them, the options of the plugin that `use` names.

    A subclass sets `kind`, and a default of `use` where there is one. The options, `path` among them, are validated and
    completed by the plugin's schema when there is a registry in the validation context.
    """

    model_config = ConfigDict(extra="allow")

    kind: ClassVar[str]

    use: str

    @property
    def choice(self) -> Choice:
        """The choice of the plugin: {"use": NAME, "path": …, **options}."""
        return {"use": self.use, "path": self.path, **(self.model_extra or {})}

    @model_validator(mode="after")
    def _options(self, info: ValidationInfo) -> Self:
        registry: Registry | None = (info.context or {}).get("registry")
        if registry is not None:
            options = {key: value for key, value in self.choice.items() if key != "use"}
            completed = _complete(registry, self.kind, self.use, options, list(type(self).model_fields))
            self.__pydantic_extra__ = {key: value for key, value in completed.items() if key != "path"}
        return self
