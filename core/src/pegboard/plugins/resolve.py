"""A resolved choice: a small JSON value from which any process creates exactly what was chosen, without a scan."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from typing import Any

from pegboard.errors import ConfigError, PegboardError, PluginError, nearest
from pegboard.plugins.doors import import_custom, import_object, load_schema
from pegboard.plugins.groups import GROUPS
from pegboard.plugins.spec import PluginSpec


@dataclass(frozen=True, slots=True)
class ResolvedChoice:
    """One chosen plugin with its options.

    dist, version: the distribution that offers it, empty for a user's own class. target, schema: "module:attribute".
    """

    kind: str
    name: str
    dist: str
    version: str
    target: str
    interface: int
    schema: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResolvedChoice:
        """Return the choice that `to_json` wrote.

        Raises PluginError when it is of another interface version than this core.
        """
        names = {f.name for f in fields(cls)}
        if set(value) != names or value["kind"] not in GROUPS:
            raise PluginError(
                f"this is no resolved choice: {dict(value)!r}", fix="run the same pegboard in all processes"
            )
        choice = cls(**value)
        wanted = GROUPS[choice.kind].version
        if choice.interface != wanted:
            raise PluginError(
                f"{choice.what} was resolved for version {choice.interface} of its interface, "
                f"this process has version {wanted}",
                fix="install the same pegboard in all processes",
            )
        return choice

    @property
    def what(self) -> str:
        """The choice for error messages."""
        return f"{self.kind} {self.name!r}" + (f" of {self.dist}" if self.dist else "")

    def load(self) -> Any:
        """Import the implementation. Raises PluginError when it fails or the distribution here has another version."""
        if not self.dist and self.name == self.target:
            return import_custom(self.kind, self.target)
        if self.version and (here := _installed(self.dist)) != self.version:
            raise PluginError(
                f"{self.what} was resolved as version {self.version}, here is {here or 'none'}",
                fix=f"pip install {self.dist}=={self.version}",
            )
        try:
            return import_object(self.target)
        except Exception as error:
            raise PluginError(
                f"{self.what}: {self.target} cannot be imported: {type(error).__name__}: {error}",
                fix=f"`peg plugins check {self.name}` shows more; "
                f"pip install --upgrade --force-reinstall {self.dist or self.name}",
            ) from error

    def options_model(self) -> Any:
        """Return the validated options, or None for a plugin without a schema.

        Raises ConfigError naming the wrong option.
        """
        spec = PluginSpec(kind=self.kind, target=self.target, schema=self.schema)
        schema = load_schema(spec, self.what)
        if schema is None:
            if self.options:
                raise ConfigError(f"{self.what} takes no options, given: {', '.join(self.options)}", fix="remove them")
            return None
        from pegboard.config.errors import validate_options

        return validate_options(schema, self.options, self.what)

    def create(self) -> Any:
        """Return an instance, made with the options model, or without argument where the plugin has no schema.

        A user's own class is called as `create_custom` says, and what it raises is left as it is. Raises PluginError
        with the cause when a plugin raises anything but a PegboardError.
        """
        target = self.load()
        if not self.dist and self.name == self.target:
            return create_custom(self, target)
        model = self.options_model()
        _refuse_abstract(self.what, target)
        try:
            return target() if model is None else target(model)
        except PegboardError:
            raise
        except Exception as error:
            raise PluginError(
                f"{self.what} cannot be created: {type(error).__name__}: {error}",
                fix="`peg doctor` looks for the cause; PEGBOARD_DEBUG=1 shows the traceback for its authors",
            ) from error


def create_custom(choice: ResolvedChoice, target: Any) -> Any:
    """Return an instance of a user's own class.

    With its `schema` when it has one, else with the options as keyword arguments.
    """
    if not callable(target):
        raise ConfigError(
            f"{choice.what} is a {type(target).__name__}, expected a class", fix="name a class: module:Class"
        )
    _refuse_abstract(choice.what, target)
    schema = getattr(target, "schema", None)
    if schema is not None:
        from pegboard.config.errors import validate_options

        return target(validate_options(schema, choice.options, choice.what))
    signature = inspect.signature(target)
    try:
        signature.bind(**choice.options)
    except TypeError as error:
        wrong = next((key for key in choice.options if key not in signature.parameters), "")
        hint = nearest(wrong, signature.parameters) if wrong else ""
        takes = ", ".join(signature.parameters) or "none"
        raise ConfigError(
            f"{choice.what}: {error}{hint}; its parameters are: {takes}", fix="correct the keys"
        ) from error
    return target(**choice.options)


def _refuse_abstract(what: str, target: Any) -> None:
    if inspect.isabstract(target):
        missing = ", ".join(sorted(target.__abstractmethods__))
        raise PluginError(
            f"{what} is not complete: it lacks {missing}", fix="implement the missing methods, or upgrade the plugin"
        )


def _installed(dist: str) -> str:
    try:
        return metadata.version(dist)
    except metadata.PackageNotFoundError:
        return ""
