"""Parsers that are broken, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pegboard_acme.parser import CALL, AcmeParser, LineParser
from pegboard_acme.plugin import SPEC

from pegboard.interfaces.parser import Parsed
from pegboard_sdk.conformance import ParserSuite
from pegboard_sdk.conformance.parser import Answer


class Mutant(ParserSuite):
    __test__ = False
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[LineParser]] = LineParser
    streams = False
    samples: ClassVar = {
        'Yes.\nCALL weather {"city": "Paris"}\nCALL search {}\nDone.': Answer(
            "Yes.\nDone.", calls=[("weather", {"city": "Paris"}), ("search", {})]
        )
    }
    malformed = ("CALL", "CALL weather {", "CALL weather [1]")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmeParser:
        factory = AcmeParser()
        factory.parser = lambda tools, *, prompt="": self.broken()
        return factory


class TestSaysNotWhatItParses(Mutant):
    caught_by = ("test_front_door_says_what_it_parses",)
    spec = replace(SPEC, capabilities={"templates": []})


class TestNamesOneMark(Mutant):
    caught_by = ("test_front_door_says_what_it_parses",)
    spec = replace(SPEC, capabilities={"parses": "tools", "templates": "CALL"})


class TestChangesArguments(Mutant):
    caught_by = ("test_samples",)

    class broken(LineParser):
        def take(self):
            piece = super().take()
            return replace(piece, arguments=piece.arguments.lower())


class TestNumbersFromOne(Mutant):
    caught_by = ("test_samples",)

    class broken(LineParser):
        def take(self):
            piece = super().take()
            return piece if piece.tool is None else replace(piece, tool=piece.tool + 1)


class TestNoCalls(Mutant):
    caught_by = ("test_samples",)

    class broken(LineParser):
        def take(self):
            line, self.held = self.held, ""
            return Parsed(content=line)


class TestReadsPieces(Mutant):
    caught_by = ("test_cuts_do_not_matter",)

    class broken(LineParser):
        def push(self, text):
            self.is_content = self.is_content and not text.startswith("CALL")
            return super().push(text) + super().finish()


class TestStripsContent(Mutant):
    caught_by = ("test_plain_text_is_content",)

    class broken(LineParser):
        def push(self, text):
            return super().push(text if self.calls or self.held else text.lstrip())


class TestDropsWhatIsNoCall(Mutant):
    caught_by = ("test_malformed_is_content",)

    class broken(LineParser):
        def take(self):
            dropped = self.held.startswith("CALL") and CALL.fullmatch(self.held) is None
            piece = super().take()
            return Parsed() if dropped else piece


class TestCallsWhatIsNoCall(Mutant):
    caught_by = ("test_malformed_is_content",)

    class broken(LineParser):
        def take(self):
            if self.held == "CALL weather [1]":
                self.held = "CALL weather {}"
            return super().take()


class TestCompletesCalls(Mutant):
    caught_by = ("test_an_answer_may_end_anywhere",)

    class broken(LineParser):
        def finish(self):
            if self.held.startswith("CALL weather {") and not self.held.endswith("}"):
                self.held = "CALL weather {}"
            return super().finish()


class TestWaitsForTheEnd(Mutant):
    caught_by = ("test_nothing_is_held_back_for_long",)

    class broken(LineParser):
        def push(self, text):
            self.all = getattr(self, "all", "") + text
            return []

        def finish(self):
            return [*super().push(getattr(self, "all", "")), *super().finish()]


class TestComesWholeThoughItStreams(Mutant):
    caught_by = ("test_nothing_is_held_back_for_long",)
    streams = True


class TestCountsForAll(Mutant):
    caught_by = ("test_parsers_are_apart",)

    class broken(LineParser):
        count: ClassVar[list[int]] = [0]
        calls = property(lambda self: self.count[0], lambda self, value: self.count.__setitem__(0, value))


class TestSpeaksUnicodeAlone(Mutant):
    caught_by = ("test_any_text_is_taken",)

    class broken(LineParser):
        def push(self, text):
            text.encode()
            return super().push(text)
