"""pydantic's complaints as lines that name path, value, what was expected, and the nearest key."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pegboard.config.compose import Composed
from pegboard.errors import ConfigError, PegboardError, nearest

Model = TypeVar("Model", bound=BaseModel)


class SectionError(ValueError):
    """Carries what is wrong inside a plugin section out through pydantic, so that all are reported together.

    schema: what a ValidationError is of. beside: other keys that stand in the same section.
    """

    def __init__(
        self,
        cause: PegboardError | ValidationError,
        schema: type[BaseModel] | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.schema = schema
        self.beside = beside


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint. head: path, and value where that says more; where: the file or override that set it."""

    head: str
    message: str
    where: str = ""
    fix: str = ""


def validate_options(schema: type[Model], options: Mapping[str, Any], what: str) -> Model:
    """Return the options model. Raises ConfigError with a line for each wrong option of `what`."""
    try:
        return schema.model_validate(dict(options))
    except ValidationError as error:
        raise config_error(error, schema, what, Composed(dict(options))) from None


def config_error(
    error: ValidationError, schema: type[BaseModel], what: str, composed: Composed, fix: str | None = None
) -> ConfigError:
    """Return one ConfigError for everything that pydantic found in `composed`."""
    problems = list(_problems(error, schema, composed, ()))
    said: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        said.setdefault((problem.head, problem.where), []).append(problem.message)
    # The members of a union complain one by one: a value that fits none of them is one problem.
    lines = [
        f"{head}: {' or '.join(dict.fromkeys(messages))}" + (f" (in {where})" if where else "")
        for (head, where), messages in said.items()
    ]
    head = f"{what}: {lines[0]}" if len(lines) == 1 else "\n    ".join([f"{what}: {len(lines)} problems", *lines])
    fixes = dict.fromkeys(problem.fix for problem in problems if problem.fix)
    return ConfigError(head, fix="; ".join(fixes) or fix or "correct the keys named above")


def _problems(
    error: ValidationError,
    schema: type[BaseModel],
    composed: Composed,
    prefix: Sequence[int | str],
    beside: Sequence[str] = (),
) -> Iterator[Problem]:
    """Yield the problems of an error, those inside plugin sections included. beside: keys that `schema` lacks."""
    for detail in error.errors(include_url=False):
        loc = [*prefix, *detail["loc"]]
        cause = (detail.get("ctx") or {}).get("error")
        if isinstance(cause, SectionError) and isinstance(cause.cause, ValidationError) and cause.schema is not None:
            yield from _problems(cause.cause, cause.schema, composed, loc, cause.beside)
        elif isinstance(cause, SectionError) and isinstance(cause.cause, PegboardError):
            yield Problem(dotted(loc), cause.cause.message, composed.origin(loc), cause.cause.fix or "")
        elif detail["type"] == "missing":
            yield Problem(dotted(loc), "a value is required")
        elif detail["type"] == "extra_forbidden":
            above = detail["loc"][:-1]
            known = sorted({*keys_at(schema, above), *(() if above else beside)})
            keys = f"; keys here: {', '.join(known)}" if known else "; there are no keys here"
            yield Problem(dotted(loc), f"unknown key{nearest(str(loc[-1]), known) or keys}", composed.origin(loc))
        else:
            path = _up_to_value(composed.tree, loc)
            message = detail["msg"].removeprefix("Value error, ")
            expected = message.removeprefix("Input should be ")
            yield Problem(
                f"{dotted(path)} = {shorten(detail['input'])}",
                message if expected == message else f"expected {expected}",
                composed.origin(path),
            )


def dotted(loc: Sequence[int | str]) -> str:
    """Return a location as the user writes it in an override."""
    return ".".join(str(part) for part in loc) or "the config"


def _up_to_value(tree: Any, loc: Sequence[int | str]) -> Sequence[int | str]:
    """Return `loc` without what pydantic adds behind a plain value: the member of a union that refused it."""
    for depth, part in enumerate(loc):
        if isinstance(tree, Mapping) and str(part) in tree:
            tree = tree[str(part)]
        elif isinstance(tree, (list, tuple)) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return loc if isinstance(tree, Mapping) else loc[:depth]
    return loc


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
