"""Which parsers a model gets, and how reasoning and calls are taken out of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from pegboard.errors import ConfigError, PluginError
from pegboard.plugins.load import Registry
from pegboard_sdk.site import Site
from pegboard_sdk.toys.tokenizer import TinyTokenizer
from pegboard_server.parsing import Parsers, ToolUse, template_text

DOOR = """
from pegboard.plugins.spec import PluginSpec
TOOLS = PluginSpec(kind="parser", target="angle.parse:Calls", capabilities={"parses": "tools", "templates": ["<<call>>"]})
THINK = PluginSpec(kind="parser", target="angle.parse:Thoughts", capabilities={"parses": "reasoning", "templates": ["<<think>>"]})
"""
PARSE = """
from pegboard.interfaces.parser import OutputParser, Parsed, ParserFactory

class Cut(OutputParser):
    # `(` begins what `)` ends, one character at a time
    def __init__(self, tools):
        self.inside, self.tools, self.count = False, tools, -1
    def push(self, text):
        found = []
        for character in text:
            if character == self.marks[0]:
                self.inside, self.count = True, self.count + 1
                if self.tools is not None:
                    found.append(Parsed(tool=self.count, name=self.tools[0]["function"]["name"]))
            elif character == self.marks[1]:
                self.inside = False
            elif self.inside and self.tools is not None:
                found.append(Parsed(tool=self.count, arguments=character))
            elif self.inside:
                found.append(Parsed(reasoning=character))
            else:
                found.append(Parsed(content=character))
        return found
    def finish(self):
        return []

class Round(Cut):
    marks = "()"

class Square(Cut):
    marks = "[]"

class Thoughts(ParserFactory):
    def parser(self, tools, *, prompt):
        return Round(None)

class Calls(ParserFactory):
    def parser(self, tools, *, prompt):
        return Square(tools)
"""
TOOL = {"type": "function", "function": {"name": "f"}}


class Templated(TinyTokenizer):
    def __init__(self, **files: str) -> None:
        self._files = files

    def files(self) -> Mapping[str, bytes]:
        return {name.replace("__", "."): text.encode() for name, text in self._files.items()}


@pytest.fixture
def registry(plugin_site: Site) -> Registry:
    offers = {("parser", "angle"): "angle.plugin:TOOLS", ("parser", "angle-think"): "angle.plugin:THINK"}
    plugin_site.add("angle-parser", offers, {"angle.plugin": DOOR, "angle.parse": PARSE})
    return Registry.discover()


def test_an_automatic_choice_looks_into_the_template(registry: Registry) -> None:
    both = Parsers.choose(
        registry, Templated(chat_template__jinja="a<<call>>b<<think>>"), tools="auto", reasoning="auto"
    )
    assert both.tools is not None
    assert both.reasoning is not None
    config = '{"chat_template": [{"name": "default", "template": "x<<call>>"}]}'
    tools = Parsers.choose(registry, Templated(tokenizer_config__json=config), tools="auto", reasoning="auto")
    assert tools.tools is not None
    assert tools.reasoning is None
    none = Parsers.choose(registry, TinyTokenizer(), tools="auto", reasoning="auto")
    assert none.tools is None


def test_a_named_choice(registry: Registry) -> None:
    parsers = Parsers.choose(registry, TinyTokenizer(), tools="angle", reasoning="none")
    assert parsers.tools is not None
    with pytest.raises(ConfigError, match="parses reasoning, not tools"):
        Parsers.choose(registry, TinyTokenizer(), tools="angle-think", reasoning="none")
    with pytest.raises(PluginError, match="no installed plugin"):
        Parsers.choose(registry, TinyTokenizer(), tools="acute", reasoning="none")


def test_templates_of_all_files() -> None:
    tokenizer = Templated(
        chat_template__jinja="one", tokenizer_config__json='{"chat_template": "two"}', tokenizer__json="three"
    )
    assert template_text(tokenizer) == "one\ntwo"


def test_reasoning_then_calls(registry: Registry) -> None:
    parsers = Parsers.choose(registry, TinyTokenizer(), tools="angle", reasoning="angle-think")
    parser = parsers.parser(ToolUse([TOOL], "auto"))
    pieces = [*parser.push("(th[x]ink)say[1]"), *parser.push("[2]!"), *parser.finish()]
    assert "".join(p.reasoning for p in pieces) == "th[x]ink"
    assert "".join(p.content for p in pieces) == "say!"
    assert [(p.tool, p.name, p.arguments) for p in pieces if p.tool is not None] == [
        (0, "f", ""),
        (0, "", "1"),
        (1, "f", ""),
        (1, "", "2"),
    ]
    assert parser.called


def test_calls_are_text_where_no_tool_was_offered(registry: Registry) -> None:
    parsers = Parsers.choose(registry, TinyTokenizer(), tools="angle", reasoning="none")
    for use in (ToolUse(), ToolUse([TOOL], "none")):
        parser = parsers.parser(use)
        assert "".join(p.content for p in parser.push("a[1]")) == "a[1]"
        assert not parser.called


def test_only_one_call_where_they_may_not_be_parallel(registry: Registry) -> None:
    parser = Parsers.choose(registry, TinyTokenizer(), tools="angle", reasoning="none").parser(
        ToolUse([TOOL], "auto", False)
    )
    pieces: list[Any] = parser.push("[1][2]")
    assert {p.tool for p in pieces} == {0}


def test_the_parsers_of_the_workspace_are_found_by_template() -> None:
    tokenizer = Templated(chat_template__jinja="{{ '<tool_call>' }} {{ '</think>' }}")
    parsers = Parsers.choose(Registry.discover(), tokenizer, tools="auto", reasoning="auto")
    parser = parsers.parser(ToolUse([TOOL], "auto"), "<|im_start|>assistant\n")
    text = '<think>hm</think>Well.<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    pieces = [piece for character in text for piece in parser.push(character)] + parser.finish()
    assert "".join(p.reasoning for p in pieces).strip() == "hm"
    assert "".join(p.content for p in pieces).strip() == "Well."
    assert "".join(p.name for p in pieces) == "f"
    assert json.loads("".join(p.arguments for p in pieces)) == {"x": 1}
