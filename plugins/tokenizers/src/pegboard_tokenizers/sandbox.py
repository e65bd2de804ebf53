"""The Jinja dialect of chat templates, in a sandbox that keeps a stranger's template from running away.

Beyond Jinja's immutable sandbox, which keeps Python's objects out of reach: loop steps and calls are counted, and stopped when their
time is over; operators, filters and methods that could build huge texts from small ones are checked.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEXT = 64 << 20
"""Characters of a text, or items of a list, that a template may put together."""
MAX_STEPS = 2_000_000
"""Loop steps and calls of one rendering, over all loops and macros."""
MAX_SECONDS = 10.0
"""Seconds after which no further step or call of a rendering is taken."""
MAX_NUMBER = 1 << 20
"""Largest width or count that a template may give to a function that builds text."""

BUDGET = "loop budget"  # with a space in it, so that no template can name it

_WIDTH = re.compile(r"[%{][^%{}a-zA-Z]*?(?:\d{7,}|\*)")
"""A format that asks for a width of millions, or takes its width from an argument."""


class Refusal(TemplateError):
    """Raised by `raise_exception` in a template."""


class Budget:
    """Loop steps and calls that one rendering may still take.

    Whatever repeats in a template is one of these, so that one that would go on for ever holds its thread for a limited time.
    """

    def __init__(self) -> None:
        self._left = MAX_STEPS
        self._end = time.monotonic() + MAX_SECONDS

    def spend(self) -> None:
        """Take one step."""
        self._left -= 1
        if self._left < 0:
            raise SecurityError(f"it took more than {MAX_STEPS} loop steps and calls")
        if time.monotonic() > self._end:
            raise SecurityError(f"it took more than {MAX_SECONDS:g} s")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates. marks: texts to write before and after what a {% generation %} block gives."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, marks: tuple[str, str] = ("", "")) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        self.marks = marks
        self.filters |= {"tojson": _to_json, "count_steps": _count_steps, "concat": _concat, "check_text": _check_text}
        for name in ("center", "indent", "wordwrap", "format"):
            self.filters[name] = _bounded(self.filters[name])
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bound().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, unless that may grow too large."""
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "**" and (abs(left) > MAX_NUMBER or abs(right) > 64):
            raise SecurityError(f"it computes {left} ** {right}")
        elif operator == "+" and isinstance(left, (str, list, tuple)):
            _check_size(len(left) + len(right))
        elif operator == "*" and isinstance(left, (str, list, tuple)) and isinstance(right, int):
            _check_size(len(left) * right)
        elif operator == "*" and isinstance(right, (str, list, tuple)) and isinstance(left, int):
            _check_size(len(right) * left)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Guard the method `format` of texts."""
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else _bounded(functools.partial(_formatted, wrapped, value.__self__))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the template's; methods of texts take no huge numbers."""
        # A macro that calls itself twice repeats without a loop.
        context[BUDGET].spend()
        if isinstance(getattr(obj, "__self__", None), str):
            _check_arguments(args, kwargs)
        return super().call(context, obj, *args, **kwargs)


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what the model writes."""

    tags = {"generation"}  # noqa: RUF012 (declared so by Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller: Macro) -> str:
        assert isinstance(self.environment, ChatEnvironment)
        before, after = self.environment.marks
        return f"{before}{caller()}{after}"


class _Bound(NodeTransformer):
    """Puts the checks into a template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "count_steps")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "concat")

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _filter(node.filter, "check_text", node.lineno)
        return node


def _filter(node: nodes.Node | None, name: str, line: int = 0) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node is not None else line)


@jinja2.pass_context
def _count_steps(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    budget = context[BUDGET]
    for item in items:
        budget.spend()
        yield item


def _concat(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_text(text: str) -> str:
    _check_size(len(text))
    return text


def _formatted(function: Callable[..., str], text: str, *args: Any, **kwargs: Any) -> str:
    _check_format(text)
    return function(*args, **kwargs)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its arguments checked and the marks that Jinja reads kept."""

    @functools.wraps(function, assigned=(), updated=("__dict__",))
    def checked(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], str):
            _check_format(args[0])
        _check_arguments(args, kwargs)
        return function(*args, **kwargs)

    return checked


def _check_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Mapping):
            _check_arguments((), value)
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"it gives the number {value} to a function that builds text")


def _check_format(text: str) -> None:
    if _WIDTH.search(text):
        raise SecurityError(f"it formats with {text[:80]!r}, which may be of any width")


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"it puts together {size} characters or items; at most {MAX_TEXT} are allowed")


def _raise_exception(message: Any) -> NoReturn:
    raise Refusal(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter: no escapes for HTML, letters as they are."""
    _check_arguments((indent,), {})
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
