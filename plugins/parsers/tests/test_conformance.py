from __future__ import annotations

from typing import ClassVar

from pegboard_parsers import plugin
from pegboard_sdk.conformance import ParserSuite
from pegboard_sdk.conformance.parser import Answer

PARIS = {"city": "Paris", "days": 3}
ODD = {"q": 'a "b" } </tool_call> [x] {', "n": [1, {"m": None}], "u": "größe 大 🎉\n"}
ODD_TEXT = '{"q": "a \\"b\\" } </tool_call> [x] {", "n": [1, {"m": null}], "u": "größe 大 \\ud83c\\udf89\\n"}'


class TestHermes(ParserSuite):
    spec = plugin.HERMES
    samples: ClassVar = {
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>': Answer(
            calls=[("weather", PARIS)]
        ),
        'I look.\n\n<tool_call>{"name":"weather","arguments":{}}</tool_call>\n<tool_call>{"name": "search", "arguments": '
        + ODD_TEXT
        + "}</tool_call>\n": Answer("I look.", calls=[("weather", {}), ("search", ODD)]),
        '<tool_call>\n{"arguments": {"city": "Paris", "days": 3}, "name": "weather"}\n</tool_call>\n\nDone. ': Answer(
            "\n\nDone. ", calls=[("weather", PARIS)]
        ),
        '<tool_call>{"id": 7, "name": "weather", "type": "function"}</tool_call>': Answer(calls=[("weather", {})]),
        '<tool_call>{"name": "weather", "arguments": null}</tool_call>': Answer(calls=[("weather", {})]),
        '<tool_call>{"name": "search", "arguments": "{\\"q\\": 1}"}</tool_call>': Answer(calls=[("search", {"q": 1})]),
        '<tool_call>{"name": "search", "arguments": {"q": "two\nlines"}}': Answer(
            calls=[("search", {"q": "two\nlines"})]
        ),
        '<tool_call>{"name": "a", "arguments": {}} {"name": "b", "arguments": {}}</tool_call>': Answer(
            calls=[("a", {}), ("b", {})]
        ),
        '<tool_call>{"name": "a", "arguments": {}}<tool_call>{"name": "b"}</tool_call> <b>': Answer(
            " <b>", calls=[("a", {}), ("b", {})]
        ),
    }
    malformed = (
        "<tool_call>",
        "<tool_call>\n{",
        "<tool_call>weather(Paris)</tool_call> and more",
        '<tool_call>{"name": "weather"',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "none"}</tool_call>',
        '<tool_call>{"name": "weather", arguments: {}}</tool_call>',
        "<tool_call>{'name': 'weather', 'arguments': {}}</tool_call>",
        "<tool_calls> < <tool <<tool_call",
        '{"name": "weather", "arguments": {}}',
        "text <tool_call> {} text",
    )


class TestLlama(ParserSuite):
    spec = plugin.LLAMA
    samples: ClassVar = {
        '{"name": "weather", "parameters": {"city": "Paris", "days": 3}}': Answer(calls=[("weather", PARIS)]),
        '<|python_tag|>{"name": "weather", "parameters": {}}': Answer(calls=[("weather", {})]),
        ' \n{"type": "function", "name": "weather", "parameters": {}};\n{"name": "search", "parameters": '
        + ODD_TEXT
        + "}\n": Answer(calls=[("weather", {}), ("search", ODD)]),
        'I search.<|python_tag|> {"name": "search", "arguments": {"q": {"a": [{}]}}} then': Answer(
            "I search. then", calls=[("search", {"q": {"a": [{}]}})]
        ),
        '{"name": "weather", "parameters": {}}; and that was it': Answer("; and that was it", calls=[("weather", {})]),
    }
    malformed = (
        "{",
        "  {}",
        '{"name": "Bob", "age": 5}',
        '{"name": "Bob", "parameters": {"age": 5}}',
        '{"city": "Paris"}',
        '{"name": "weather", "parameters": 5}',
        "<|python_tag|>print(1)",
        "<|python_tag|> {1: 2}",
        "<|python",
        '```json\n{"name": "weather", "parameters": {}}\n```',
        'So: {"name": "weather", "parameters": {}}',
    )


class TestMistral(ParserSuite):
    spec = plugin.MISTRAL
    samples: ClassVar = {
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris", "days": 3}}]': Answer(
            calls=[("weather", PARIS)]
        ),
        'I look. [TOOL_CALLS][{"name": "weather", "arguments": {}},\n{"name": "search", "arguments": '
        + ODD_TEXT
        + ', "id": "abc123"} ] ok': Answer("I look. ok", calls=[("weather", {}), ("search", ODD)]),
        '[TOOL_CALLS]weather{"city": "Paris", "days": 3}[TOOL_CALLS]search[ARGS]{"q": [1]}': Answer(
            calls=[("weather", PARIS), ("search", {"q": [1]})]
        ),
        "[TOOL_CALLS]weather[CALL_ID]a1B2c3d4e[ARGS]{} ": Answer(calls=[("weather", {})]),
        '[TOOL_CALLS]{"name": "weather", "arguments": {}}': Answer(calls=[("weather", {})]),
        '[TOOL_CALLS][{"name": "weather", "arguments": {}}': Answer(calls=[("weather", {})]),
    }
    malformed = (
        "[TOOL_CALLS]",
        "[TOOL_CALLS] []",
        "[TOOL_CALLS] [1, 2]",
        "[TOOL_CALLS] weather (Paris)",
        "[TOOL_CALLS]weather[CALL_ID]abc{}",
        "[TOOL_CALLS]weather[ARGS] text",
        '[TOOL_CALLS][{"arguments": {}}]',
        "[TOOL_CALL] [TOOL",
        "[[1], [2]]",
        '[{"name": "weather", "arguments": {}}]',
    )


class TestPythonic(ParserSuite):
    spec = plugin.PYTHONIC
    samples: ClassVar = {
        "[weather(city='Paris', days=3)]": Answer(calls=[("weather", PARIS)]),
        "<|python_start|>[weather(), search(q=\"it's\", n=[1, -2.5, True, None, {'a': (1, 2)}])]<|python_end|>": Answer(
            calls=[("weather", {}), ("search", {"q": "it's", "n": [1, -2.5, True, None, {"a": [1, 2]}]})]
        ),
        " [\n search( q = 'a \\'b\\' ) ] \\n \\u00e9 \\x41 \\\\ 大 🎉', )\n]\nDone": Answer(
            "\nDone", calls=[("search", {"q": "a 'b' ) ] \n é A \\ 大 🎉"})]
        ),
        "[search(q='two\nlines', f=1e3, g=.5, i=1_000, t=true)]": Answer(
            calls=[("search", {"q": "two\nlines", "f": 1000.0, "g": 0.5, "i": 1000, "t": True})]
        ),
        "[search(q=[], r={}, s=(), t=[[],[{}]],)]": Answer(
            calls=[("search", {"q": [], "r": {}, "s": [], "t": [[], [{}]]})]
        ),
    }
    malformed = (
        "[",
        "[]",
        "[1, 2, 3]",
        "[weather]",
        "[weather(",
        "[weather('Paris')]",
        "[unknown(a=1)]",
        "[weather(a b)]",
        "[weather(a=)]",
        "[link](http://example.com)",
        "<|python_start|> print(1)",
        "<|python_start|>[x",
    )


class TestThink(ParserSuite):
    spec = plugin.THINK
    samples: ClassVar = {
        "<think>\nLet me see.\n\nYes.\n</think>\n\nIt is 4.\n": Answer("It is 4.\n", "Let me see.\n\nYes."),
        "\n<think>a < b </thin> <think></think>x</think>": Answer("x</think>", "a < b </thin> <think>"),
        "<think>no end\n": Answer("", "no end\n"),
        "<think></think>": Answer(),
        "<think>\n\n</think>\n\nfast": Answer("fast"),
    }
    malformed = ("<thinking> of it", "So <think>later</think>", "</think> first", "<thin", "<")


class TestThinkOpened(ParserSuite):
    spec = plugin.THINK_OPENED
    plain = False
    samples: ClassVar = {
        "Let me see.\n</think>\n\nIt is 4.": Answer("It is 4.", "Let me see."),
        "<think>\nLet me see.</think>4": Answer("4", "Let me see."),
        "</think>4": Answer("4"),
        "\n</think>4": Answer("4"),
        "<thi</think>4": Answer("4", "<thi"),
        "no end <": Answer("", "no end <"),
    }


class TestThinkAfterAnOpenPrompt(TestThinkOpened):
    spec = plugin.THINK
    prompt = "<|im_start|>assistant\n<think>\n"


class TestThinkOpenedAfterAClosedPrompt(TestThink):
    spec = plugin.THINK_OPENED
    prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
