"""The one scan: records, their status and reason, the lists, and that nothing is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard import __version__
from pegboard.plugins.index import Index, PluginRecord, find_conflicts, normalise, scan


def found(name: str) -> list[PluginRecord]:
    return [record for record in scan().records if record.name == name]


def test_a_record_tells_what_the_metadata_say(site) -> None:
    site.add("acme-peg", {("adapter", "thing"): "acme_peg.plugin:SPEC [extra]"}, {"acme_peg.plugin": "1/0"})
    (record,) = found("thing")
    assert record == PluginRecord(
        "adapter", "thing", "acme-peg", "1.0", "The acme-peg of a test", "acme_peg.plugin:SPEC", "ok", ""
    )
    assert record.identity == "acme-peg:thing"
    assert site.imported() == []


@pytest.mark.parametrize("entry", ["thing", "acme-peg", "Acme_Peg", "acme-peg:thing"])
@pytest.mark.parametrize("where", ["environment", "argument"])
def test_the_block_list_takes_names_distributions_and_both(site, monkeypatch, entry: str, where: str) -> None:
    site.add("acme-peg", {("adapter", "thing"): "acme_peg.plugin:SPEC"}, {"acme_peg.plugin": ""})
    if where == "environment":
        monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", f"other, {entry}")
    disabled = [entry] if where == "argument" else []
    (record,) = [record for record in scan(disabled=disabled).records if record.name == "thing"]
    assert record.status == "blocked"
    assert f"disabled as {entry!r}" in record.reason
    assert site.imported() == []


def test_everything_outside_the_allow_list_is_blocked(site, monkeypatch) -> None:
    site.add("acme-peg", {("adapter", "thing"): "m:S", ("logger", "other"): "m:S"})
    monkeypatch.setenv("PEGBOARD_PLUGINS", "thing")
    assert [r.status for r in found("thing") + found("other")] == ["ok", "blocked"]
    assert "PEGBOARD_PLUGINS" in found("other")[0].reason
    monkeypatch.setenv("PEGBOARD_PLUGINS", "")
    assert {record.status for record in scan().records} == {"blocked"}
    monkeypatch.delenv("PEGBOARD_PLUGINS")
    assert [r.status for r in found("thing") + found("other")] == ["ok", "ok"]
    assert [r.status for r in scan(allowed=["acme-peg:other"]).records if r.name == "other"] == ["ok"]


def test_the_block_list_wins_over_the_allow_list(site, monkeypatch) -> None:
    site.add("acme-peg", {("adapter", "thing"): "m:S"})
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "acme-peg")
    assert found("thing")[0].status == "blocked"


def test_a_list_entry_that_means_nothing_is_told(site, monkeypatch) -> None:
    site.add("acme-peg", {("adapter", "thing"): "m:S"})
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "thnig")
    monkeypatch.setenv("PEGBOARD_PLUGINS", "thing nothing")
    problems = scan().problems
    assert any("'thnig'" in problem and "PEGBOARD_DISABLE_PLUGINS" in problem for problem in problems)
    assert any("'nothing'" in problem and "PEGBOARD_PLUGINS" in problem for problem in problems)


def test_duplicates_conflict_though_others_stand_between_them(site) -> None:
    """stevedore compares neighbours only: with a name in between it takes the last without a word."""
    site.add("one-peg", {("adapter", "thing"): "one:S"})
    site.add("two-peg", {("adapter", "other"): "two:S"})
    site.add("zoo-peg", {("adapter", "thing"): "zoo:S"})
    conflicts = found("thing")
    assert [record.status for record in conflicts] == ["conflict", "conflict"]
    for record in conflicts:
        assert "one-peg 1.0 and zoo-peg 1.0" in record.reason
    assert found("other")[0].status == "ok"


def test_one_name_in_two_kinds_is_no_conflict(site) -> None:
    site.add("one-peg", {("adapter", "thing"): "one:S"})
    site.add("two-peg", {("logger", "thing"): "two:S"})
    assert [record.status for record in found("thing")] == ["ok", "ok"]


def test_blocking_one_of_two_settles_the_conflict(site, monkeypatch) -> None:
    site.add("one-peg", {("adapter", "thing"): "one:S"})
    site.add("two-peg", {("adapter", "thing"): "two:S"})
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "one-peg")
    assert [record.status for record in found("thing")] == ["blocked", "ok"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=8))
def test_conflicts_are_names_that_occur_twice(pairs: list[tuple[str, str]]) -> None:
    records = [PluginRecord(kind, name, f"d{n}", "1", "", "m:S") for n, (kind, name) in enumerate(pairs)]
    once = list(find_conflicts(records))
    assert [record.status == "conflict" for record in once] == [pairs.count(pair) > 1 for pair in pairs]
    assert list(find_conflicts(once)) == once


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("pegboard>=99", "acme-peg needs pegboard>=99"),
        ("pegboard (<0.0.1)", "acme-peg needs pegboard<0.0.1"),
        ("Pegboard==9.*", "acme-peg needs pegboard==9.*"),
        ("pegboard=!nonsense", "cannot be read"),
        (f"pegboard=={__version__}", ""),
        ("pegboard>=0.0.1 ; python_version >= '3'", ""),
        ("pegboard>=99 ; python_version < '3'", ""),
        ("pegboard>=99 ; extra == 'later'", ""),
        ("pegboard-other>=99", ""),
    ],
)
def test_the_first_gate_is_the_requirement(site, requirement: str, reason: str) -> None:
    site.add("acme-peg", {("adapter", "thing"): "acme.plugin:S"}, {"acme.plugin": ""}, requires=["torch", requirement])
    (record,) = found("thing")
    assert record.status == ("incompatible" if reason else "ok")
    assert reason in record.reason
    assert site.imported() == []


def test_a_kind_that_does_not_exist_is_incompatible(site) -> None:
    site.add("acme-peg", {("telepathy", "thing"): "m:S"})
    (record,) = found("thing")
    assert (record.status, "telepathy" in record.reason) == ("incompatible", True)


@pytest.mark.parametrize("value", ["m", "m:", ":S", "m S", "m:S:T", "../m:S"])
def test_an_entry_point_that_is_no_path_has_failed(site, value: str) -> None:
    site.add("acme-peg", {("adapter", "thing"): value})
    (record,) = found("thing")
    assert (record.status, repr(value) in record.reason) == ("failed", True)


def test_metadata_that_cannot_be_read_are_a_problem_of_their_own(site) -> None:
    site.add("acme-peg", {("adapter", "thing"): "m:S"})
    site.add("bad-peg", {("adapter", "other"): "m:S"})
    (site.folder / "bad_peg-1.0.dist-info" / "METADATA").write_text("Version: 1.0\n")
    (site.folder / "worse_peg-1.0.dist-info").mkdir()
    (site.folder / "worse_peg-1.0.dist-info" / "entry_points.txt").write_bytes(b"[pegboard.adapter]\n\xff = m:S\n")
    assert [record.status for record in found("thing")] == ["ok"]
    problems = scan().problems
    assert any("bad_peg" in problem and "no Name" in problem for problem in problems)
    assert any("worse_peg" in problem for problem in problems)


def test_the_first_copy_on_the_path_is_the_one(site, tmp_path: Path, monkeypatch) -> None:
    """A distribution that is shadowed offers nothing: an import would not find it."""
    site.add("acme-peg", {("adapter", "thing"): "m:S"}, version="2.0")
    older = tmp_path / "older" / "acme_peg-1.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Name: acme-peg\nVersion: 1.0\n")
    (older / "entry_points.txt").write_text("[pegboard.adapter]\nthing = m:S\ngone = m:S\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    assert [record.version for record in found("thing")] == ["2.0"]
    assert found("gone") == []


def test_a_re_installation_shows_at_once(site) -> None:
    """stevedore's cache would serve the old entry points for two minutes."""
    site.add("acme-peg", {("adapter", "thing"): "m:S"})
    assert [record.value for record in found("thing")] == ["m:S"]
    site.add("acme-peg", {("adapter", "thing"): "m:T", ("adapter", "new"): "m:U"})
    assert [record.value for record in found("thing") + found("new")] == ["m:T", "m:U"]


def test_an_index_sorts_and_filters() -> None:
    record = PluginRecord("adapter", "b", "d", "1", "", "m:S")
    index = Index((record,))
    assert index.of_kind("adapter") == [record]
    assert index.of_kind("logger") == []


@given(st.text("aB-_.", min_size=1))
def test_names_of_distributions_compare_as_package_indexes_do(name: str) -> None:
    assert normalise(normalise(name)) == normalise(name)
    assert normalise(name.upper().replace("_", ".")) == normalise(name)
