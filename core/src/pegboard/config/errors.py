"""pydantic's complaints as lines that name path, value, what was expected, and the nearest key."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from pegboard.errors import ConfigError, PegboardError, nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from pegboard.config.compose import Composed

Model = TypeVar("Model", bound=BaseModel)


class SectionError(ValueError):
    """Carries what is wrong inside a plugin section out through pydantic, so that all are reported together."""

    def __init__(
        self, cause: PegboardError | ValidationError, schema: type[BaseModel] | None = None, what: str = ""
    ) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.schema = schema
        self.what = what


def validate_options(schema: type[Model], options: Mapping[str, Any], what: str) -> Model:
    """Return the options model. Raises ConfigError with a line for each wrong option of `what`."""
    try:
        return schema.model_validate(dict(options))
    except ValidationError as error:
        raise config_error(error, schema, what) from None


def config_error(
    error: ValidationError,
    schema: type[BaseModel],
    what: str,
    fix: str | None = None,
    composed: Composed | None = None,
) -> ConfigError:
    """Return one ConfigError for everything that pydantic found. composed: tells which file or override said it."""
    problems, fixes = _problems(error, schema)
    lines: dict[str, str] = {}
    for path, text in problems:
        where = composed.origin(path) if composed is not None else ""
        line = text + (f" (in {where})" if where else "")
        lines[line] = line
    found = list(lines)
    head = f"{what}: {found[0]}" if len(found) == 1 else "\n    ".join([f"{what}: {len(found)} problems", *found])
    return ConfigError(head, fix="; ".join(dict.fromkeys(fixes)) or fix or "correct the keys named above")


def _problems(
    error: ValidationError, schema: type[BaseModel], prefix: Sequence[int | str] = ()
) -> tuple[list[tuple[Sequence[int | str], str]], list[str]]:
    """Return path and line of each problem, those inside plugin sections included, and the fixes of plugin errors."""
    problems: list[tuple[Sequence[int | str], str]] = []
    fixes: list[str] = []
    for detail in error.errors(include_url=False):
        loc = [*prefix, *detail["loc"]]
        cause = (detail.get("ctx") or {}).get("error")
        if isinstance(cause, SectionError) and isinstance(cause.cause, ValidationError) and cause.schema is not None:
            inner, more = _problems(cause.cause, cause.schema, loc)
            problems += inner
            fixes += more
        elif isinstance(cause, SectionError) and isinstance(cause.cause, PegboardError):
            problems.append((loc, f"{dotted(loc)}: {cause.cause.message}"))
            fixes += [cause.cause.fix] if cause.cause.fix else []
        else:
            problems.append((loc, _line(detail, loc, schema)))
    return problems, fixes


def dotted(loc: Sequence[int | str]) -> str:
    """Return a location as the user writes it in an override."""
    return ".".join(str(part) for part in loc) or "the config"


def _line(detail: ErrorDetails, loc: Sequence[int | str], schema: type[BaseModel]) -> str:
    path = dotted(loc)
    if detail["type"] == "extra_forbidden":
        known = keys_at(schema, detail["loc"][:-1])
        hint = nearest(str(loc[-1]), known) or (
            f"; keys here: {', '.join(known)}" if known else "; there are no keys here"
        )
        return f"{path}: unknown key{hint}"
    if detail["type"] == "missing":
        return f"{path}: a value is required"
    message = detail["msg"].removeprefix("Value error, ")
    expected = message.removeprefix("Input should be ")
    if expected != message:
        message = f"expected {expected}"
    return f"{path} = {shorten(detail['input'])}: {message}"


def shorten(value: object, width: int = 80) -> str:
    """Return a value's repr, cut to a line's worth."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def keys_at(schema: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Return the keys that the model under `loc` has, or an empty list where there is no one model."""
    models = [schema]
    for part in loc:
        found: list[type[BaseModel]] = []
        for model in models:
            field = model.model_fields.get(str(part))
            if field is not None:
                found += _models_in(field.annotation)
        models = found or [model for model in models if not isinstance(part, str)]
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models of an annotation, through unions, containers and Annotated."""
    if inspect.isclass(annotation) and typing.get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
