from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegboard_engine.pages import PagePool
from pegboard_engine.prefix import Chain, Found, PrefixCache

SIZE = 4


def cache(pages: int = 20, **options: bool) -> tuple[PagePool, PrefixCache]:
    pool = PagePool(pages)
    return pool, PrefixCache(pool, SIZE, **options)


def chain(prefixes: PrefixCache, tokens: list[int], root: bytes = b"root") -> list[bytes]:
    digests = Chain()
    prefixes.extend(digests, root, tokens)
    return digests.after(0)


TOKENS = st.lists(st.integers(0, 3), max_size=24)


@given(first=TOKENS, second=TOKENS, roots=st.tuples(st.sampled_from("ab"), st.sampled_from("ab")))
def test_equal_names_mean_equal_beginnings(first: list[int], second: list[int], roots: tuple[str, str]) -> None:
    _, prefixes = cache()
    one, two = (chain(prefixes, t, prefixes.root(r)) for t, r in zip((first, second), roots, strict=True))
    shared = sum(1 for a, b in zip(one, two, strict=False) if a == b)
    expected = 0
    if roots[0] == roots[1]:
        while (expected + 1) * SIZE <= min(len(first), len(second)) and (
            first[: (expected + 1) * SIZE] == second[: (expected + 1) * SIZE]
        ):
            expected += 1
    assert shared == expected
    assert one[:shared] == two[:shared]
    assert len(set(one) | set(two)) == len(one) + len(two) - shared


@given(tokens=TOKENS, cut=st.integers(0, 6))
def test_a_chain_grows_as_if_made_at_once(tokens: list[int], cut: int) -> None:
    _, prefixes = cache()
    digests = Chain()
    prefixes.extend(digests, b"root", tokens[: cut * SIZE])
    first = len(digests)
    prefixes.extend(digests, b"root", np.array(tokens[first * SIZE :], dtype=np.int32), first)
    assert digests.after(0) == [digests[i] for i in range(len(digests))] == chain(prefixes, tokens)
    prefixes.extend(digests, b"root", tokens)
    assert len(digests) == len(tokens) // SIZE
    assert digests.after(1) == chain(prefixes, tokens)[1:]
    with pytest.raises(IndexError, match="there is no page"):
        digests[len(digests)]


def test_another_process_has_other_names() -> None:
    assert chain(cache()[1], [1, 2, 3, 4]) != chain(cache()[1], [1, 2, 3, 4])


def test_finds_the_longest_beginning_that_is_published() -> None:
    pool, prefixes = cache()
    digests = chain(prefixes, list(range(12)))
    pages = pool.allocate(3)
    prefixes.publish(digests[:2], pages[:2])
    assert prefixes.find(digests) == pages[:2]
    assert prefixes.find(digests[1:]) == pages[1:2]
    assert prefixes.find(chain(prefixes, [9, *range(1, 12)])) == []


def test_what_is_given_out_again_is_not_found() -> None:
    pool, prefixes = cache(4)
    digests = chain(prefixes, list(range(12)))
    pages = pool.allocate(3)
    prefixes.publish(digests, pages)
    pool.free(pages)
    assert prefixes.find(digests) == pages
    pool.allocate(1)
    assert prefixes.find(digests) == pages[:2]
    assert len(prefixes) == 2


def test_the_first_page_of_a_name_stays_the_one() -> None:
    pool, prefixes = cache()
    (digest,) = chain(prefixes, [1, 2, 3, 4])
    first, second = pool.allocate(2)
    prefixes.publish([digest], [first])
    prefixes.publish([digest], [second])
    assert prefixes.find([digest]) == [first]
    pool.free([second])
    assert pool.num_kept == 0


def test_a_claim_ends_with_its_owner_or_with_the_page() -> None:
    pool, prefixes = cache()
    digests = chain(prefixes, list(range(8)))
    prefixes.claim(digests, owner=1)
    prefixes.claim(digests, owner=2)
    prefixes.unclaim(digests, owner=2)
    assert all(prefixes.claimed(digest) for digest in digests)
    prefixes.publish(digests[:1], pool.allocate(1))
    prefixes.unclaim(digests[1:], owner=1)
    assert not any(prefixes.claimed(digest) for digest in digests)


@pytest.mark.parametrize("enabled", [True, False])
def test_reset_and_off_find_nothing(enabled: bool) -> None:
    pool, prefixes = cache(enabled=enabled)
    digests = chain(prefixes, list(range(8)))
    assert bool(digests) == enabled
    for digest in digests:
        prefixes.publish([digest], pool.allocate(1))
    prefixes.reset()
    assert prefixes.find(digests) == []
    assert len(prefixes) == pool.num_kept == 0


class Counted(dict[bytes, int]):
    """Counts who looks into it."""

    looks = 0

    def get(self, *args: Any) -> Any:
        self.looks += 1
        return super().get(*args)


def test_what_was_found_is_not_looked_for_again() -> None:
    pool, prefixes = cache(40)
    digests = Chain()
    prefixes.extend(digests, b"root", list(range(80)))
    pages = pool.allocate(10)
    prefixes.publish(digests.after(0)[:10], pages)
    prefixes._page_of = counted = Counted(prefixes._page_of)
    found = prefixes.find_more(digests, None)
    assert (found.pages, counted.looks) == (pages, 11)
    for _ in range(5):
        assert prefixes.find_more(digests, found) is found
    assert counted.looks == 16  # the next page alone, once each time
    more = pool.allocate(1)
    prefixes.publish(digests.after(10)[:1], more)
    assert prefixes.find_more(digests, found).pages == pages + more
    other = pool.allocate(1)
    prefixes.publish([b"of somebody else"], other)
    pool.free(other)
    pool.allocate(pool.num_free)  # which loses that page, and none of these
    assert prefixes.find_more(digests, found) is found
    pool.free(more)
    pool.allocate(1)
    again = prefixes.find_more(digests, found)
    assert (again is found, again.pages) == (False, pages)


ACTIONS = st.lists(st.tuples(st.sampled_from(["publish", "free", "take", "reset"]), st.integers(0, 7)), max_size=40)


@given(actions=ACTIONS)
def test_looking_further_finds_what_looking_anew_does(actions: list[tuple[str, int]]) -> None:
    pool, prefixes = cache(10)
    chains = [Chain(), Chain()]
    for chain_, tokens in zip(chains, (range(32), [*range(16), *range(50, 66)]), strict=True):
        prefixes.extend(chain_, b"root", list(tokens))
    found: list[Found | None] = [None, None]
    held: list[int] = []
    for action, number in actions:
        if action == "publish" and pool.num_free:
            held += pool.allocate(1)
            prefixes.publish([chains[number % 2][number]], held[-1:])
        elif action == "free" and held:
            pool.free([held.pop(number % len(held))])
        elif action == "take":
            pool.free(pool.allocate(min(number, pool.num_free)))
        elif action == "reset":
            prefixes.reset()
        for index, digests in enumerate(chains):
            found[index] = now = prefixes.find_more(digests, found[index])
            assert now.pages == prefixes.find(digests)


def test_a_page_behind_the_next_one_has_no_digest() -> None:
    prefixes = cache()[1]
    with pytest.raises(IndexError, match="page 1 does not follow the 0 that are known"):
        prefixes.next_digests([Chain()], [b"root"], [1], np.zeros((1, SIZE), dtype=np.int32))


@given(tokens=TOKENS)
def test_page_by_page_is_as_all_at_once(tokens: list[int]) -> None:
    prefixes = cache()[1]
    digests, pages = Chain(), len(tokens) // SIZE
    for index in range(pages):
        part = np.array([tokens[index * SIZE : (index + 1) * SIZE]] * 2, dtype=np.int32)
        # The second time it is known.
        one, two = prefixes.next_digests([digests, digests], [b"root"] * 2, [index] * 2, part)
        assert one == two
    assert digests.after(0) == chain(prefixes, tokens)
