"""Sources that are broken, each in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pegboard_acme.options import Options
from pegboard_acme.plugin import SPEC
from pegboard_acme.source import AcmeSource

from pegboard_sdk.conformance import SourceSuite


class Mutant(SourceSuite):
    __test__ = False
    spec = SPEC
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeSource]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmeSource:
        return self.broken(Options(**options))

    def write(self, folder, rows):
        texts = ["".join(f"{name}: {value}\n" for name, value in row.items()) for row in rows]
        (folder / "rows.txt").write_text("\n".join(texts), encoding="utf-8")
        return {"path": str(folder / "rows.txt")}


class TestSound(Mutant):
    broken = AcmeSource


class TestSwallowsSpaces(Mutant):
    caught_by = ("test_rows",)

    class broken(AcmeSource):
        def row(self, index):
            return {name: value.replace(" ", "") for name, value in super().row(index).items()}


class TestCountsFromOne(Mutant):
    caught_by = ("test_rows",)

    class broken(AcmeSource):
        def rows(self, start=0):
            return ((index + 1, row) for index, row in super().rows(start))


class TestBeginsAlwaysAtTheBeginning(Mutant):
    caught_by = ("test_continues",)

    class broken(AcmeSource):
        def rows(self, start=0):
            return super().rows(0)


class TestHasOnePassAtATime(Mutant):
    caught_by = ("test_continues",)

    class broken(AcmeSource):
        def rows(self, start=0):
            self._at = start
            while self._at < len(self):
                self._at += 1
                yield self._at - 1, self.row(self._at - 1)


class TestMiscounts(Mutant):
    caught_by = ("test_any_order",)

    class broken(AcmeSource):
        def __len__(self):
            return super().__len__() - 1


class TestReadsOnAndOn(Mutant):
    caught_by = ("test_any_order",)

    class broken(AcmeSource):
        _at = -1

        def row(self, index):
            self._at = max(self._at + 1, index) % len(self._rows)
            return super().row(self._at)


class TestAllStandInTheFile(Mutant):
    caught_by = ("test_says_where_a_row_stands",)

    class broken(AcmeSource):
        def describe(self, index):
            return str(self._path)


class TestHashesThePath(Mutant):
    caught_by = ("test_fingerprint",)

    class broken(AcmeSource):
        def fingerprint(self):
            return str(self._path)


class TestHashesTheLength(Mutant):
    caught_by = ("test_fingerprint",)

    class broken(AcmeSource):
        def fingerprint(self):
            return str(len(self))


class TestEmptyWhereNothingIs(Mutant):
    caught_by = ("test_what_is_not_there_is_named",)

    class broken(AcmeSource):
        def __init__(self, options):
            self._rows, self._lines = [], []
            if Path(options.path).exists():
                super().__init__(options)


class TestRaisesWhatTheSystemRaises(Mutant):
    caught_by = ("test_what_is_not_there_is_named",)

    class broken(AcmeSource):
        def __init__(self, options):
            Path(options.path).stat()
            super().__init__(options)
