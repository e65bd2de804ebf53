"""Finding pages that hold the beginning of a sequence already.

The name of a full page is a keyed hash of its tokens and of the page before it, so that equal names mean equal prefixes. The key is
drawn when the process starts: nobody outside can aim at a collision, and names tell nothing about the text.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from pegboard_engine.pages import PagePool

_DIGEST = 16


class Chain:
    """Digests of the full pages of a sequence, in order, in one piece of memory: a long context has thousands, and a thousand of
    those are no work for the garbage collector this way. last: the last one, None where there is none.
    """

    __slots__ = ("_count", "_data", "last")

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0
        self.last: bytes | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no page {index}: {len(self)} are known")
        return bytes(self._data[index * _DIGEST : (index + 1) * _DIGEST])

    def after(self, count: int) -> list[bytes]:
        """Return those behind the first `count`."""
        return [
            bytes(self._data[start : start + _DIGEST]) for start in range(count * _DIGEST, len(self._data), _DIGEST)
        ]

    def append(self, digest: bytes) -> None:
        """Add the next one."""
        self._data += digest
        self._count += 1
        self.last = digest


@dataclass(slots=True)
class Found:
    """Pages of the beginning of a chain, to be looked for further by `PrefixCache.find_more`. losses: of the cache then."""

    pages: list[int]
    losses: int


class PrefixCache:
    """Digest -> page, for pages whose content is written. Forgets a page when the pool gives it out for something else.

    A page in the making is known too: `claim` says who is computing it, so that others can wait instead of computing it again.
    """

    def __init__(self, pages: PagePool, page_size: int, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.page_size = page_size
        self.queries = 0
        self.hits = 0
        self._pages = pages
        # A copy of a hash that has taken its key is made in half the time of a keyed one.
        self._keyed = blake2b(digest_size=_DIGEST, key=secrets.token_bytes(32))
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._claims: dict[bytes, int] = {}
        # Pages that some `Found` may name, and how often one of those was lost.
        self._found = bytearray(pages.num_pages)
        self._losses = 0
        pages.on_evict = self._evicted

    def __len__(self) -> int:
        return len(self._page_of)

    def root(self, *parts: object) -> bytes:
        """Return the digest that a chain starts from: requests share pages only when all `parts` (tenant, adapter, version of the
        weights, a picture's hash …) are equal.
        """
        return self._digest(repr(parts).encode())

    def extend(self, digests: Chain, root: bytes, tokens: Sequence[int] | np.ndarray, first: int = 0) -> None:
        """Append the digests of the full pages of `tokens` that are not in `digests` yet. tokens[0] has position first * page_size."""
        size = self.page_size
        count = first + len(tokens) // size
        if not self.enabled or count <= len(digests):
            return
        data = np.asarray(tokens, dtype=np.int32).tobytes()
        parent = digests.last or root
        for page in range(len(digests) - first, count - first):
            parent = self._digest(parent + data[page * size * 4 : (page + 1) * size * 4])
            digests.append(parent)

    def next_digests(
        self, chains: Sequence[Chain], roots: Sequence[bytes], indices: Sequence[int], tokens: np.ndarray
    ) -> list[bytes]:
        """Return the digest of page indices[i] of each chain, which is known or the next one and is then appended.

        tokens: [K, page_size] int32, of these pages. Raises IndexError for a page behind the next one.
        """
        data, width, digests = tokens.tobytes(), self.page_size * 4, []
        for number, (chain, root, index) in enumerate(zip(chains, roots, indices, strict=True)):
            known = len(chain)
            if index > known:
                raise IndexError(f"page {index} does not follow the {known} that are known")
            if index == known:
                digest = self._digest((chain.last or root) + data[number * width : (number + 1) * width])
                chain.append(digest)
            else:
                digest = chain[index]
            digests.append(digest)
        return digests

    def find(self, digests: Chain | Sequence[bytes]) -> list[int]:
        """Return the pages of the longest known beginning of a chain. They are not held yet."""
        found = []
        for index in range(len(digests)):
            page = self._page_of.get(digests[index])
            if page is None:
                break
            found.append(page)
        return found

    def find_more(self, digests: Chain, before: Found | None, most: int | None = None) -> Found:
        """As `find`, at most `most` pages, going on from what was found before, as long as none of it was lost."""
        if before is None or before.losses != self._losses:
            before = Found([], self._losses)
        pages = before.pages
        for index in range(len(pages), len(digests) if most is None else most):
            page = self._page_of.get(digests[index])
            if page is None:
                break
            pages.append(page)
            self._found[page] = 1
        return before

    def claimed(self, digest: bytes) -> bool:
        """Whether some request is computing this page now."""
        return digest in self._claims

    def claim(self, digests: Sequence[bytes], owner: int) -> None:
        """Say that `owner` (a slot) computes these pages."""
        for digest in digests:
            self._claims.setdefault(digest, owner)

    def unclaim(self, digests: Sequence[bytes], owner: int) -> None:
        """Say that `owner` computes them no more."""
        for digest in digests:
            if self._claims.get(digest) == owner:
                del self._claims[digest]

    def publish(self, digests: Sequence[bytes], pages: Sequence[int]) -> None:
        """Make held pages findable; their content is in the cache. A page that is known under this name already stays the one."""
        page_of, digest_of, claims, kept = self._page_of, self._digest_of, self._claims, []
        for digest, page in zip(digests, pages, strict=True):
            if claims:
                claims.pop(digest, None)
            if digest not in page_of:
                page_of[digest] = page
                digest_of[page] = digest
                kept.append(page)
        self._pages.keep(kept)

    def reset(self) -> None:
        """Forget every page; what runs keeps its own."""
        self._losses += 1
        for page in list(self._digest_of):
            self._pages.forget(page)
        self._page_of.clear()
        self._digest_of.clear()

    def _digest(self, data: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(data)
        return keyed.digest()

    def _evicted(self, page: int) -> None:
        if self._found[page]:
            self._found[page] = 0
            self._losses += 1
        del self._page_of[self._digest_of.pop(page)]
