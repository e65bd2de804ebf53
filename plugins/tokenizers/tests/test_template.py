"""Chat templates: the dialect, the choice among several, errors, limits and the sandbox."""

from __future__ import annotations

import itertools
import json
import re
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from pegboard.errors import DataError
from pegboard.types import Message
from pegboard_tokenizers.loader import Loader
from pegboard_tokenizers.template import ChatTemplate

MakeFiles = Callable[..., dict[str, bytes]]
CHAT = [Message("user", "Hi"), Message("assistant", "Ho")]


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source, "the template").render({"messages": [], **variables})


def test_a_conversation(make_files: MakeFiles, chatml: str) -> None:
    tokenizer = Loader().load(make_files(template=chatml), {})
    assert tokenizer.has_chat_template
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    assert tokenizer.chat_text(CHAT, generation_prompt=False) == text
    assert tokenizer.chat_text(CHAT) == text + "<|im_start|>assistant\n"
    assert tokenizer.chat(CHAT) == tokenizer.encode(tokenizer.chat_text(CHAT), special=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'b': '<ü>', 'a': [1, none]} | tojson }}", '{"b": "<ü>", "a": [1, null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ ['ü'] | tojson(ensure_ascii=true, separators=(',', ':')) }}", '["\\u00fc"]'),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
        ("{% set ns = namespace(n=0) %}{% for x in 'abc' %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}", "6"),
        ("{% for x in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v ~ none }}{% endfor %}", "a1None"),
        ("{% for x in none_such %}x{% else %}empty{% endfor %}", "empty"),
        ("{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        ("{% macro m(x) %}{% for i in range(x) %}{{ i }}{% endfor %}{% endmacro %}{{ m(3) }}", "012"),
        ("{% set x %}a{{ 'b' }}{% endset %}{{ x }}{% set y | upper %}c{% endset %}{{ y }}", "abC"),
        ("{{ 'a%sc' % 'b' }}{{ '{:>3}'.format('d') }}{{ '%s'|format('e') }}{{ 'f'.center(3) }}", "abc  de f "),
        ("{{ 2 ** 3 }}{{ [1] * 2 }}{{ 3 * 'g' }}{{ [1] + [2] }}{{ 7 % 4 }}", "8[1, 1]ggg[1, 2]3"),
        ("{{ messages[0].content | trim }}{{ messages[0]['role'][:2] }}{{ messages[0].get('name', '-') }}", "xus-"),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ 4294967296 | string }}{% macro m(x) %}{{ x }}{% endmacro %}{{ m(4294967296) }}", "4294967296" * 2),
    ],
)  # fmt: skip
def test_the_dialect(source: str, expected: str) -> None:
    assert render(source, messages=[{"role": "user", "content": " x "}]) == expected


def test_variables(make_files: MakeFiles) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ tools | tojson }}|{{ documents }}|{{ think }}|{{ messages | tojson }}"
    tokenizer = Loader().load(make_files(template=template), {})
    messages = [Message("assistant", "x", {"tool_calls": [{"id": 1}], "name": None, "role": "user"})]
    text = tokenizer.chat_text(messages, tools=[{"name": "f"}], variables={"think": False, "bos_token": "!"})
    shown = json.dumps([{"tool_calls": [{"id": 1}], "role": "assistant", "content": "x"}])
    assert text == f'!|<|im_end|>||[{{"name": "f"}}]|None|False|{shown}'
    assert tokenizer.chat_text([], variables={"messages": "no"}).endswith("||[]")


def test_which_template_counts(make_files: MakeFiles) -> None:
    def text(files: dict[str, bytes], **kwargs: Any) -> str:
        return Loader().load(files, {}).chat_text(CHAT, **kwargs)

    legacy = {"chat_template.json": b'{"chat_template": "old"}'}
    assert text({**make_files(), **legacy}) == "old"
    assert text({**make_files(chat_template="config"), **legacy}) == "config"
    assert text({**make_files(chat_template="config", template="file")}) == "file"
    tools = [{"name": "f"}]
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    assert text(make_files(chat_template=named)) == "plain"
    assert text(make_files(chat_template=named), tools=tools) == "with tools"
    assert text(make_files(chat_template=named[:1]), tools=tools) == "plain"
    assert text({**make_files(template="file"), "additional_chat_templates/tool_use.jinja": b"T"}, tools=tools) == "T"
    with pytest.raises(DataError, match="only for: tool_use"):
        text(make_files(chat_template=named[1:]))


def test_no_template(make_files: MakeFiles) -> None:
    tokenizer = Loader().load(make_files(), {})
    assert not tokenizer.has_chat_template
    with pytest.raises(DataError, match="no chat template"):
        tokenizer.chat(CHAT)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", r"the template, line 1, is not a chat template"),
        ("{% generation %}", "not a chat template"),
        ("a" * ((1 << 20) + 1), "at most 1048576"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("{{ messages[3].content.x }}", "UndefinedError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{% for x in 3 %}{% endfor %}", "TypeError"),
        ("{{ now }}", "now is a datetime"),
        ("{{ messages[0].deep }}", None),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% include 'x' %}", "fails on the conversation"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_a_data_error(source: str, message: str | None) -> None:
    variables = {"now": datetime.now()} if message and "datetime" in message else {"messages": [{}]}
    if message is None:
        assert render(source, **variables) == ""
        return
    with pytest.raises(DataError, match=re.escape(message) if "(" in message else message):
        render(source, **variables)


def test_objects_are_named_by_their_place() -> None:
    with pytest.raises(DataError, match=re.escape("messages[0].content[1] is a set")):
        render("", messages=[{"content": ["a", {1}]}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999999999) %}{% endfor %}",
        "{{ 'a' * 9999999999 }}",
        "{{ 9999999999 * [1] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%09999999999d' | format(1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 9999999999) }}",
        "{{ '{:{w}}'.format_map({'w': 9999999999}) }}",
        "{{ 'a'.center(9999999999) }}",
        "{{ 'a' | center(9999999999) }}",
        "{{ 'a' | indent(9999999999) }}",
        "{{ 'a' | indent(width=9999999999) }}",
        "{{ [1] | tojson(indent=9999999999) }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for i in range(90) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set x = 'a' * 1000000 %}{% for i in range(100) %}{{ x }}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ messages | map(attribute='__class__') | list | first | attr('__base__') }}{{ messages.pop() }}",
    ],
)  # fmt: skip
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(DataError, match=r"was stopped|fails on the conversation: (OverflowError|UndefinedError)"):
        render(source, messages=[1])


_DOUBLING = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"


@pytest.mark.parametrize(
    "source",
    [
        _DOUBLING,
        "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
        + "{% call f() %}" * 40 + "x" + "{% endcall %}" * 40,
    ],
    ids=["macro", "nested calls"],
)  # fmt: skip
def test_what_doubles_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegboard_tokenizers.sandbox.MAX_STEPS", 3000)
    with pytest.raises(DataError, match="was stopped: it took more than 3000 loop steps and calls"):
        render(source)


@pytest.mark.parametrize(
    "source", [_DOUBLING, "{% for i in range(90000) %}{{ i }}{% endfor %}"], ids=["calls", "a loop"]
)
def test_a_rendering_whose_time_is_over_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that ticks when it is looked at: how fast the machine is does not matter.
    clock = itertools.count()
    monkeypatch.setattr("pegboard_tokenizers.sandbox.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(DataError, match=r"was stopped: it took more than 10 s"):
        render(source)
    assert next(clock) == 12, "the first step past the end is the last"


def test_spans_of_generation_blocks() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m }}:{% generation %}{{ m * 2 }}{% endgeneration %};{% endfor %}", "the template"
    )
    assert template.has_generation
    assert template.render_spans({"messages": ["a", "", "bc"]}) == ("a:aa;:;bc:bcbc;", [(2, 4), (6, 6), (10, 14)])
    assert not ChatTemplate("{% for x in [] %}{% break %}{% endfor %}{{ f(x) }}", "the template").has_generation


def test_blocks_may_be_set_and_trimmed() -> None:
    source = "x{% set t %}  {% generation %}ab{% endgeneration %} {% endset %}{{ t | trim }}y"
    assert ChatTemplate(source, "the template").render_spans({}) == ("xaby", [(1, 3)])
