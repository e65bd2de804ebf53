"""Every standard test fails on an implementation that is broken where it looks, and the scaffolded package passes them all."""

from __future__ import annotations

import gc
import shutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pegboard_sdk import conformance
from pegboard_sdk.conformance.guard import standard_tests
from pegboard_sdk.scaffold.names import choose_names
from pegboard_sdk.scaffold.write import write_package

MUTANTS = Path(__file__).with_name("mutants")
SUITES = {
    "adapter": conformance.AdapterSuite,
    "attention": conformance.AttentionSuite,
    "grammar": conformance.GrammarSuite,
    "logger": conformance.LoggerSuite,
    "logits_processor": conformance.LogitsProcessorSuite,
    "model": conformance.ModelSuite,
    "objective": conformance.ObjectiveSuite,
    "parser": conformance.ParserSuite,
    "platform": conformance.PlatformSuite,
    "source": conformance.SourceSuite,
    "transform": conformance.TransformSuite,
}

SOUND = "TestSound"
"""Name of the class, in a file of mutants, that is none: it passes the tests that the others fail."""


class Bench:
    """Runs test files in this process, in a session of their own, from a folder that holds a scaffolded package.

    pytester would drop what is imported meanwhile, and torch cannot be imported twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package: Path | None = None
        self._choose = False
        self._seen: dict[tuple[str, str], set[str]] = {}

    def run(self, path: Path, *, caught_by: bool = False) -> dict[tuple[str, str], set[str]]:
        """Return (class, test without its parameters) -> outcomes. caught_by: only tests that their class names there."""
        self._seen = defaultdict(set)
        self._choose = caught_by
        options = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", str(self.folder / "pytest.ini")]
        with warnings.catch_warnings(action="ignore"):
            pytest.main([*options, "--rootdir", str(self.folder), str(path)], plugins=[self])
            gc.collect()  # files that a failing test left open
        return self._seen

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self._choose:
            items[:] = [i for i in items if i.cls.__name__ == SOUND or i.originalname in i.cls.caught_by]

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            _, cls, test = report.nodeid.split("::")
            self._seen[cls, test.partition("[")[0]].add(report.outcome)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench with the package `pegboard-acme` of the test's kind, which can be imported."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    made = Bench(tmp_path)
    made.package = write_package(choose_names("acme", request.param), tmp_path)
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(made.package / "src"))
    yield made
    for name, module in list(sys.modules.items()):
        if name not in before and str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def survivors(bench: Bench, kind: str, suite: type) -> dict[str, list[str]]:
    """Run the mutants of a kind; return standard test -> mutants that it let pass, or that it has none."""
    file = bench.folder / f"test_{kind}_mutants.py"
    shutil.copy(MUTANTS / f"{kind}_mutants.py", file)
    found = bench.run(file, caught_by=True)
    wrong = [test for (cls, test), outcomes in found.items() if cls == SOUND and "failed" in outcomes]
    assert set(wrong) <= {"test_is_discovered"}
    found = {(cls, test): outcomes for (cls, test), outcomes in found.items() if cls != SOUND}
    tried = {test for _, test in found}
    left: dict[str, list[str]] = {test: ["no mutant"] for test in standard_tests(suite) if test not in tried}
    for (cls, test), outcomes in found.items():
        if "failed" not in outcomes:
            left.setdefault(test, []).append(cls)
    return left


@pytest.mark.parametrize(("kind", "bench"), [(kind, kind) for kind in SUITES], indirect=["bench"])
def test_every_standard_test_catches_a_mutant(kind: str, bench: Bench) -> None:
    front_door = set(standard_tests(conformance.PluginSuite))
    left = survivors(bench, kind, SUITES[kind])
    assert {test: classes for test, classes in left.items() if test not in front_door} == {}


@pytest.mark.parametrize("bench", ["logger"], indirect=True)
def test_front_door_tests_catch_mutants(bench: Bench) -> None:
    assert survivors(bench, "plugin", conformance.PluginSuite) == {}


@pytest.mark.parametrize(("kind", "bench"), [(kind, kind) for kind in SUITES], indirect=["bench"])
def test_scaffolded_package_passes(kind: str, bench: Bench) -> None:
    """All but being installed, which the slow tests show."""
    assert bench.package is not None
    found = bench.run(bench.package / "tests")
    assert {test for (_, test), outcomes in found.items() if "failed" in outcomes} == {"test_is_discovered"}
    assert {test for _, test in found} >= set(standard_tests(SUITES[kind]))
