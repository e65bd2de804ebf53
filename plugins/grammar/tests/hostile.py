"""Grammars of people who mean harm, as large as the limits let through, and larger."""

from __future__ import annotations

import json
from typing import Any

KB = 1024


def _schema(**keys: Any) -> str:
    return json.dumps({key.replace("ref", "$ref") if key == "ref" else key: value for key, value in keys.items()})


def _chain(count: int, step: Any, last: Any) -> str:
    """Return a schema whose definitions each lead to the next one."""
    definitions = {f"d{i}": step(f"#/$defs/d{i + 1}") for i in range(count)}
    return json.dumps({"$defs": {**definitions, f"d{count}": last}, "$ref": "#/$defs/d0"})


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


SCHEMAS = {
    "a loop": '{"$ref": "#"}',
    "a loop of two": '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
    "a loop in allOf": '{"allOf": [{"$ref": "#"}], "properties": {"a": {}}}',
    "a loop that must be followed": _schema(type="object", properties={"a": {"$ref": "#"}}, required=["a"]),
    "levels, few enough": _nested(60),
    "levels": _nested(20_000),
    "references, few enough": _chain(440, lambda to: {"$ref": to}, {"type": "string"}),
    "references in lists": _chain(440, lambda to: {"type": "array", "items": {"$ref": to}}, {"type": "string"}),
    "references in allOf": _chain(440, lambda to: {"allOf": [{"type": "object"}, {"$ref": to}]}, {"type": "object"}),
    "references that double": _chain(40, lambda to: {"allOf": [{"$ref": to}, {"$ref": to}]}, {"type": "string"}),
    "references to references": _chain(
        40, lambda to: {"type": "object", "properties": {"a": {"$ref": to}, "b": {"$ref": to}}}, {"type": "string"}
    ),
    "references": _chain(20_000, lambda to: {"$ref": to}, {}),
    "properties, few enough": _schema(type="object", properties={f"p{i}": {"type": "string"} for i in range(450)}),
    "patterned properties": _schema(
        type="object",
        properties={f"p{i}": {"type": "string", "pattern": f"^{i}[a-z]{{2,9}}$"} for i in range(450)},
        required=[f"p{i}" for i in range(450)],
    ),
    "properties": _schema(type="object", properties={f"p{i}": {} for i in range(10_000)}),
    "required without properties": _schema(type="object", required=[f"p{i}" for i in range(20_000)]),
    "values, few enough": _schema(enum=[f"value {i}" for i in range(10_000)]),
    "values": _schema(enum=list(range(60_000))),
    "a long const": _schema(const="x" * 200_000),
    "a list of a million": _schema(type="array", items={"type": "integer"}, minItems=10**6, maxItems=10**6 + 1),
    "lists of lists": _schema(
        type="array", maxItems=999, items={"type": "array", "maxItems": 999, "items": {"enum": ["a"]}}
    ),
    "a text of a billion": _schema(type="string", minLength=10**9 - 1, maxLength=10**9),
    "all of any of": _schema(
        allOf=[{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(3)]} for i in range(20)]
    ),
    "patterns that meet": _schema(type="string", allOf=[{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(5, 15)]),
    "a pattern and a length": _schema(type="string", pattern="(a|b)*a(a|b){40}", minLength=100, maxLength=1000),
    "patterns for names": _schema(
        type="object", patternProperties={f"^a{i}.*[a-z]+$": {"type": "integer"} for i in range(900)}
    ),
    "a multiple": _schema(type="integer", multipleOf=999_983, minimum=3, maximum=10**15),
    "a tiny multiple": '{"type": "number", "multipleOf": 1e-300}',
    "huge numbers": '{"type": "number", "minimum": 1e308, "maximum": 1.5e308}',
    "too many digits": '{"maximum": ' + "9" * 100_000 + "}",
    "infinity": '{"maximum": 1e999}',
    "not a number": '{"maximum": NaN}',
    "half a character": '{"const": "\\ud800"}',
    "zero bytes": '{"const": "\\u0000"}',
    "own whitespace": _schema(**{"x-guidance": {"whitespace_pattern": "(a|b)*a(a|b){60}"}, "type": "object"}),
    "own settings of a wrong type": _schema(**{"x-guidance": [1], "type": "object"}),
    "many patterns that meet": _schema(
        type="string", allOf=[{"pattern": f"(.|a)*a(.|a){{{i}}}"} for i in range(40, 60)]
    ),
    "patterns beside references": _chain(
        60, lambda to: {"pattern": f"(.|a)*a(.|a){{{40 + len(to)}}}", "$ref": to}, {"type": "string"}
    ),
    "patterns in alternatives": '{"type":"string","pattern":"(.|a)*a(.|a){50}","anyOf":[' * 25 + "{}" + "]}" * 25,
    "names, few enough": _schema(
        type="object",
        patternProperties={f"^{a}{b}(.|a)*a(.|a){{50}}$": {} for a in "abcdefgh" for b in "abcd"},
        additionalProperties=False,
    ),
    "any of many": _schema(anyOf=[{"type": "object", "properties": {f"k{i}": {"const": i}}} for i in range(1200)]),
    "one of many": _schema(oneOf=[{"type": "string", "pattern": f"^{i}.*{i}$"} for i in range(2000)]),
}

REGEXES = {
    "nested stars": "((a+)+)+b",
    "counts": "a{1000000}",
    "counts of counts": "((((a{1,99}){1,99}){1,99}){1,99}){1,99}",
    "a far memory": "(a|b)*a(a|b){200}",
    "a far memory of anything": ".*t.{300}e.{300}",
    "all letters": r"(\p{L}{1,200}[^\p{N}]){1,200}",
    "words": r"\w{1,50000}",
    "parentheses": "(" * 4_900 + "a" + ")" * 4_900,
    "stars": "a" + "*" * 9_000,
    "alternatives": "|".join(f"w{i}x" for i in range(1_500)),
    "maybe": "a?" * 3_000 + "a" * 3_000,
    "gaps": ".*".join("abcdefghij" * 300),
    "pairs of gaps": "|".join(f".*{a}.*{b}" for a in "abcdefghij" for b in "abcdefghij"),
    "classes": "[" + r"\p{L}\p{N}" * 700 + "]{1,400}",
    "anything": "(?s:.*)" * 1_000,
}

CHOICES = {
    "few enough": json.dumps([f"choice {i}" for i in range(10_000)]),
    "many": json.dumps([f"c{i}" for i in range(20_000)]),
    "long": json.dumps(["x" * 100_000, "x" * 100_000 + "y"]),
    "prefixes": json.dumps(["a" * i for i in range(500)]),
    "nested": "[" * 100_000,
    "odd": json.dumps(['"', "\\", "/", "\n", "\u0000", "\u007f", "\u2028", "<turn>", "%json", ""]),
}

GRAMMARS = {
    "parentheses": "start: " + "(" * 100_000 + '"a"' + ")" * 100_000,
    "ambiguous": 'start: start start start | "a"',
    "empty": 'start: a b\na: b | ""\nb: a | ""',
    "endless": "start: start",
    "rules, few enough": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(990)) + 'r990: "z"',
    "terminals": "start: R0\n" + "".join(f'R{i}: "a" R{i + 1}\n' for i in range(990)) + 'R990: "z"',
    "terminals that double": "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(40)) + 'R40: "z"',
    "rules": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(20_000)) + 'r20000: "z"',
    "counts": 'start: (("a"|b){1,1000}){1,1000}\nb: ("c" "d"){0,100000}',
    "a long text": 'start: "' + "a" * 250_000 + '"',
    "question marks": 'start: "a"' + "?" * 200_000,
    "and": "start: X\nX: " + " & ".join(f"/(.|\\n)*a(.|\\n){{{i}}}/" for i in range(8, 60)),
    "many ands": "start: X\nX: " + " & ".join(["/a*/"] * 30_000),
    "ands behind a comment": 'start: X # "\nX: '
    + " & ".join(f"/(.|\\n)*a(.|\\n){{{i}}}/" for i in range(8, 30))
    + ' // "',
    "ands between quotes": 'start: X\nX: /"/ & '
    + " & ".join(f"/(.|\\n)*a(.|\\n){{{i}}}/" for i in range(8, 30))
    + ' & /"/',
    "ands, few enough": "start: X\nX: " + " & ".join(f"/.*{a}.*/" for a in "abcdefgh"),
    "many nots": "start: X\nX: " + "~" * 200_000 + "/a/",
    "many ors": "start: " + " | ".join(["X"] * 60_000) + "\nX: /a/",
    "many parts": "start: " + "X " * 120_000 + "\nX: /a/",
    "a schema": 'start: %json {"$ref": "#"}',
    "a schema's references": "start: %json " + _chain(240, lambda to: {"items": {"$ref": to}}, {}),
    "a schema's levels": "start: %json " + _nested(20_000),
    "substrings": 'start: %regex {"substring_chars": "' + "abcd" * 50_000 + '"}',
    "a grammar in a grammar": "start: x\nx: %lark {" * 120 + "}" * 120,
    "brackets": "start: %json {" + '"a":[' * 200 + "]" * 200 + "}",
    "another's rules": "start: @other",
    "imports": "".join(f"%import common.N{i}\n" for i in range(9_000)) + "start: N1",
    "zero bytes": 'start: "a\0b"',
    "gbnf parentheses": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000,
    "gbnf rules": "\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(490)) + '\nr490 ::= "b"\nroot ::= r0',
    "gbnf classes": "root ::= [" + "a-z" * 80_000 + "]",
    "gbnf alternatives": "root ::= " + " | ".join(f'"w{i}"' for i in range(25_000)),
    "gbnf counts": 'root ::= ("a" | "b"){1,100000}',
}

ALL = {"json_schema": SCHEMAS, "regex": REGEXES, "choice": CHOICES, "ebnf": GRAMMARS}
