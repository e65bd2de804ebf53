"""`peg plugins` works with every plugin broken."""

from __future__ import annotations

import json
import sys

import pytest

from pegboard.commands.plugins import table

# However slow the machine is, nothing hangs that does not say so.
pytestmark = pytest.mark.usefixtures("hang")

DOOR = "from pegboard.plugins.spec import PluginSpec\n"
GOOD = DOOR + "S = PluginSpec(kind='adapter', target='{m}:T', schema='{m}:O', capabilities={{'kinds': ['a', 'b']}})\n"
OPTIONS = "from pydantic import BaseModel\nclass O(BaseModel):\n    rank: int = 8\n"
BROKEN = {
    "raises": "1/0",
    "exits": "import os; os._exit(5)",
    "ends": "raise SystemExit",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "empty": "",
    "newer": DOOR + "S = PluginSpec(kind='adapter', target='m:T', interface=99)",
}


@pytest.fixture
def broken(site):
    """Plugins that are all broken, each in its own way."""
    for name, source in BROKEN.items():
        site.add(f"{name}-peg", {("adapter", name): f"broken_{name}:S"}, {f"broken_{name}": source})
    site.add("rival-peg", {("adapter", "raises"): "broken_raises:S"})
    site.add("old-peg", {("adapter", "old"): "broken_old:S"}, {"broken_old": "1/0"}, requires=["pegboard<0.0.1"])
    site.add("text-peg", {("adapter", "text"): "not a path"})
    site.add("stray-peg", {("telepathy", "stray"): "m:S"})
    return site


def test_list_imports_nothing(broken, peg) -> None:
    said = peg("plugins", "list", "--json")
    assert said.status == 0
    records = {record["dist"]: record for record in json.loads(said.out) if record["status"] != "blocked"}
    assert set(records["exits-peg"]) == {"kind", "name", "dist", "version", "summary", "value", "status", "reason"}
    assert {dist: record["status"] for dist, record in records.items()} == {
        "crashes-peg": "ok",
        "empty-peg": "ok",
        "ends-peg": "ok",
        "exits-peg": "ok",
        "newer-peg": "ok",
        "raises-peg": "conflict",
        "rival-peg": "conflict",
        "old-peg": "incompatible",
        "text-peg": "failed",
        "stray-peg": "incompatible",
    }
    assert records["exits-peg"]["summary"] == "The exits-peg of a test"
    assert broken.imported() == []


def test_list_is_a_table(broken, peg) -> None:
    said = peg("plugins", "list", "--kind", "adapter")
    lines = said.out.splitlines()
    assert lines[0].split() == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "STATUS", "SUMMARY"]
    (line,) = [line for line in lines if "exits-peg" in line]
    assert line.split(maxsplit=5) == ["adapter", "exits", "exits-peg", "1.0", "ok", "The exits-peg of a test"]
    assert any("conflict" in line and "adapter 'raises' is offered by" in line for line in lines)
    assert not any("stray" in line for line in lines)


def test_list_of_nothing(site, peg, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [str(site.folder)])
    assert peg("plugins", "list").out == "no plugin is installed\n"
    assert peg("plugins", "list", "--kind", "schedule").out == "no plugin of kind schedule is installed\n"
    assert peg("plugins", "list", "--json").out == "[]\n"


def test_list_of_no_kind(peg) -> None:
    said = peg("plugins", "list", "--kind", "adaptor")
    assert said.status == 2
    assert "no plugin kind 'adaptor' (did you mean 'adapter'?)" in said.err


def test_list_tells_what_cannot_be_read(broken, peg) -> None:
    (broken.folder / "text_peg-1.0.dist-info" / "METADATA").write_text("")
    said = peg("plugins", "list")
    assert said.status == 0
    assert "warning: the metadata of" in said.err


def test_show(site, peg) -> None:
    site.add(
        "good-peg", {("adapter", "good"): "good_door:S"}, {"good_door": GOOD.format(m="good_impl"), "good_impl": "1/0"}
    )
    said = peg("plugins", "show", "good")
    assert said.status == 0
    fields = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert fields["adapter"] == "good"
    assert fields["distribution"] == "good-peg 1.0"
    assert fields["target"] == "good_impl:T"
    assert fields["kinds"] == "a, b"
    assert fields["status"] == "ok"
    assert "good_impl" not in site.imported()


def test_show_the_schema(site, peg) -> None:
    site.add(
        "good-peg",
        {("adapter", "good"): "good_door:S"},
        {"good_door": GOOD.format(m="good_impl"), "good_impl": OPTIONS},
    )
    said = peg("plugins", "show", "good", "--schema")
    assert json.loads(said.out)["adapter good"]["properties"]["rank"] == {
        "default": 8,
        "title": "Rank",
        "type": "integer",
    }
    plain = DOOR + "S = PluginSpec(kind='adapter', target='m:T')"
    site.add("plain-peg", {("adapter", "plain"): "plain_door:S"}, {"plain_door": plain})
    assert json.loads(peg("plugins", "show", "plain", "--schema").out) == {"adapter plain": None}
    assert "good_impl" not in sys.modules


def test_show_the_schema_of_a_recipe(bakery, peg) -> None:
    schema = json.loads(peg("plugins", "show", "bake", "--kind", "recipe", "--schema").out)["recipe bake"]
    assert schema["properties"]["optimizer"]["description"] == "a plugin of kind optimizer"
    assert schema["required"] == ["output", "model", "optimizer"]


def test_show_a_schema_that_cannot_be_told(site, peg) -> None:
    odd = "from pydantic import BaseModel\nfrom typing import Callable\nclass O(BaseModel):\n    call: Callable\n"
    site.add("odd-peg", {("adapter", "odd"): "odd_door:S"}, {"odd_door": GOOD.format(m="odd_impl"), "odd_impl": odd})
    said = peg("plugins", "show", "odd", "--schema")
    assert said.status == 2
    assert "adapter odd-peg:odd: failed: PydanticInvalidForJsonSchema" in said.err


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("rival-peg:raises", "failed: its front door broken_raises:S fails: ZeroDivisionError"),
        ("exits", "crashes: the process that imported it ended with status 5"),
        ("ends", "failed: its front door broken_ends:S fails: SystemExit"),
        ("crashes", "crashes: the process that imported it ended with signal SIGKILL"),
        ("empty", "failed: its front door broken_empty:S fails: AttributeError"),
        ("newer", "incompatible: it follows version 99 of the adapter interface"),
        ("old", "incompatible: old-peg needs pegboard<0.0.1"),
        ("text-peg", "failed: its entry point 'not a path'"),
    ],
)
def test_show_of_broken_ones(broken, peg, name: str, status: str) -> None:
    said = peg("plugins", "show", name)
    assert said.status == 0
    assert f"status        {status}" in said.out
    assert "fix           " in said.out
    said = peg("plugins", "show", name, "--schema")
    assert said.status == 2
    assert status in said.err
    assert "fix: " in said.err


def test_show_of_all_that_have_a_name(site, peg) -> None:
    source = DOOR + "A = PluginSpec(kind='adapter', target='m:T')\nL = PluginSpec(kind='logger', target='m:T')"
    site.add("two-peg", {("adapter", "two"): "two_door:A", ("logger", "two"): "two_door:L"}, {"two_door": source})
    assert peg("plugins", "show", "two").out.count("distribution") == 2
    assert peg("plugins", "show", "two", "--kind", "logger").out.count("distribution") == 1
    assert peg("plugins", "show", "two-peg").out.count("distribution") == 2


def test_show_of_unknown_ones(site, peg) -> None:
    site.add("good-peg", {("adapter", "good"): "good_door:S"})
    said = peg("plugins", "show", "goood")
    assert said.status == 2
    assert "no installed plugin is called 'goood' (did you mean 'good" in said.err
    assert "peg plugins list" in said.err


def test_check(broken, peg, hang) -> None:
    source = DOOR + "S = PluginSpec(kind='adapter', target='json:loads')\n"
    broken.add("good-peg", {("adapter", "good"): "good_door:S"}, {"good_door": source})
    broken.add("hang-peg", {("adapter", "hang"): "hang_door:S"}, {"hang_door": hang})
    said = peg("plugins", "check", "--kind", "adapter", "--timeout", "0.5")
    assert said.status == 2
    rows = {
        row[2]: row[3] for row in (line.split(maxsplit=4) for line in said.out.splitlines()[1:]) if row[3] != "blocked"
    }
    assert rows == {
        "crashes-peg": "crashes",
        "empty-peg": "failed",
        "ends-peg": "failed",
        "exits-peg": "crashes",
        "good-peg": "ok",
        "hang-peg": "hangs",
        "newer-peg": "incompatible",
        "old-peg": "incompatible",
        "raises-peg": "failed",
        "rival-peg": "failed",
        "text-peg": "failed",
    }
    assert "10 of" in said.err
    assert "hang-peg:hang" in said.err
    assert "good-peg" not in said.err


def test_check_of_one(site, peg) -> None:
    source = DOOR + "S = PluginSpec(kind='adapter', target='json:loads')\n"
    site.add("good-peg", {("adapter", "good"): "good_door:S"}, {"good_door": source})
    said = peg("plugins", "check", "good")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines()[1].split() == ["adapter", "good", "good-peg", "ok"]
    assert peg("plugins", "check", "nothing").status == 2


def test_tables_line_up() -> None:
    assert table(("A", "B"), [("aaa", "b"), ("a", "")]) == "A    B\naaa  b\na"
