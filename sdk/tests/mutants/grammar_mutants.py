"""Grammars that are broken, each in one way."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, ClassVar

from pegboard_acme.grammar import AcmeGrammar, ChoiceMatcher, Choices

from pegboard.types import GrammarSpec
from pegboard_sdk.conformance import GrammarSuite


class Mutant(GrammarSuite):
    __test__ = False
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmeGrammar]]
    kinds = ("choice",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmeGrammar:
        return self.broken()


class Matched(AcmeGrammar):
    """Its matchers are of class `matched`."""

    matched: ClassVar[type[ChoiceMatcher]]

    def compile(self, spec):
        compiled = super().compile(spec)
        compiled.matcher = lambda: self.matched(compiled)
        return compiled


class TestSpeaksAscii(Mutant):
    caught_by = ("test_matching_texts_are_allowed",)

    class broken(AcmeGrammar):
        def load(self, tokenizer, vocab_size):
            super().load(tokenizer, vocab_size)
            self.tokens = {i: text for i, text in self.tokens.items() if text.isascii()}


class TestForbidsTheEnd(Mutant):
    caught_by = ("test_matching_texts_are_allowed",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def allowed(self):
                return super().allowed() - self.choices.backend.ends


class TestEndsAnywhere(Mutant):
    caught_by = ("test_other_texts_are_not",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def allowed(self):
                return super().allowed() | self.choices.backend.ends


class TestAllowsAnotherText(Mutant):
    caught_by = ("test_random_answers_match",)

    class broken(AcmeGrammar):
        def compile(self, spec):
            return super().compile(GrammarSpec(spec.kind, json.dumps([*json.loads(spec.value), "surprise"])))


class TestAcceptsAnything(Mutant):
    caught_by = ("test_mask_and_accept_agree",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def accept(self, token_id):
                return super().accept(token_id) or token_id == ord("#")


class TestKeepsWhatItRefuses(Mutant):
    caught_by = ("test_refused_id_changes_nothing",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def accept(self, token_id):
                allowed = token_id in self.allowed()
                self.ids.append(token_id)
                return allowed


class TestTakesIdsFromBehind(Mutant):
    caught_by = ("test_refused_id_changes_nothing",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def accept(self, token_id):
                return token_id == -1 or super().accept(token_id)


class TestAddsToTheMask(Mutant):
    caught_by = ("test_mask_is_written_whole",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def fill(self, mask):
                before = mask.copy()
                super().fill(mask)
                mask |= before


class TestSetsBitsBeyondTheLogits(Mutant):
    caught_by = ("test_mask_is_written_whole",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def fill(self, mask):
                super().fill(mask)
                mask[-1] |= -1 << 28


class TestAllowsPadding(Mutant):
    caught_by = ("test_padding_and_markers_are_never_allowed",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def allowed(self):
                return super().allowed() | {270}


class TestAllowsAMarker(Mutant):
    caught_by = ("test_padding_and_markers_are_never_allowed",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def allowed(self):
                return super().allowed() | {258}


class TestNeverFinished(Mutant):
    caught_by = ("test_finished",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            finished = False


class TestFinishedTooSoon(Mutant):
    caught_by = ("test_finished",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            @property
            def finished(self):
                return bool(self.allowed() & self.choices.backend.ends)


class TestGoesOnAfterTheEnd(Mutant):
    caught_by = ("test_finished",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def allowed(self):
                ended = self.ids and self.ids[-1] in self.choices.backend.ends
                return set(self.choices.backend.tokens) if ended else super().allowed()


class TestTakesEverythingBack(Mutant):
    caught_by = ("test_rollback",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def rollback(self, count):
                del self.ids[-count:]


class TestForgetsTheEnd(Mutant):
    caught_by = ("test_rollback",)

    class broken(Matched):
        class matched(ChoiceMatcher):
            def rollback(self, count):
                super().rollback(count)
                while self.ids and self.ids[-1] in self.choices.backend.ends:
                    self.ids.pop()


class TestSharesItsMatcher(Mutant):
    caught_by = ("test_matchers_are_apart",)

    class broken(AcmeGrammar):
        def compile(self, spec):
            compiled = super().compile(spec)
            one = ChoiceMatcher(compiled)
            compiled.matcher = lambda: one
            return compiled


class TestCompilesInOnePlace(Mutant):
    caught_by = ("test_compiles_from_several_threads",)

    class broken(AcmeGrammar):
        def compile(self, spec):
            self.turn = mine = getattr(self, "turn", 0) + 1
            # The first of several threads lets another one in: that none happens to meet another is no luck of the mutant's.
            while mine == self.turn == 1 and threading.current_thread().name.startswith("ThreadPool"):
                time.sleep(0.001)
            return Choices(self, super().compile(spec).texts if self.turn == mine else [b"other"])


class TestTakesNoChoices(Mutant):
    caught_by = ("test_wrong_grammars_are_refused",)

    class broken(AcmeGrammar):
        def compile(self, spec):
            return Choices(self, []) if spec.value == "[]" else super().compile(spec)


class TestShowsTheTraceback(Mutant):
    caught_by = ("test_wrong_grammars_are_refused",)

    class broken(AcmeGrammar):
        def compile(self, spec):
            json.loads(spec.value)
            return super().compile(spec)


class TestOverflows(Mutant):
    caught_by = ("test_hostile_grammars_do_no_harm",)

    class broken(AcmeGrammar):
        def compile(self, spec):
            if spec.value.startswith("[["):
                json.loads(spec.value)
            return super().compile(spec)
