"""Finding pages that hold the beginning of a sequence already.

The name of a full page is a keyed hash of its tokens and of the page before it, so that equal names mean equal prefixes. The key is
drawn when the process starts: nobody outside can aim at a collision, and names tell nothing about the text.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from pegboard_engine.pages import PagePool

_DIGEST = 16


class Chain:
    """Digests of the full pages of a sequence, in order, in one piece of memory: a long context has thousands, and a thousand of
    those are no work for the garbage collector this way.
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data) // _DIGEST

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
        self._key = secrets.token_bytes(32)
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._claims: dict[bytes, int] = {}
        pages.on_evict = self._evicted

    def __len__(self) -> int:
        return len(self._page_of)

    def root(self, *parts: object) -> bytes:
        """Return the digest that a chain starts from: requests share pages only when all `parts` (tenant, adapter, version of the
        weights, a picture's hash …) are equal.
        """
        return blake2b(repr(parts).encode(), digest_size=_DIGEST, key=self._key).digest()

    def extend(self, digests: Chain, root: bytes, tokens: Sequence[int] | np.ndarray, first: int = 0) -> None:
        """Append the digests of the full pages of `tokens` that are not in `digests` yet. tokens[0] has position first * page_size."""
        size = self.page_size
        count = first + len(tokens) // size
        if not self.enabled or count <= len(digests):
            return
        data = np.asarray(tokens, dtype=np.int32).tobytes()
        parent = digests[len(digests) - 1] if len(digests) else root
        for page in range(len(digests) - first, count - first):
            chunk = data[page * size * 4 : (page + 1) * size * 4]
            parent = blake2b(parent + chunk, digest_size=_DIGEST, key=self._key).digest()
            digests.append(parent)

    def find(self, digests: Chain | Sequence[bytes]) -> list[int]:
        """Return the pages of the longest known beginning of a chain. They are not held yet."""
        found = []
        for index in range(len(digests)):
            page = self._page_of.get(digests[index])
            if page is None:
                break
            found.append(page)
        return found

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

    def publish(self, digest: bytes, page: int) -> None:
        """Make a held page findable; its content is in the cache. A page that is known under this name already stays the one."""
        if self._claims:
            self._claims.pop(digest, None)
        if digest not in self._page_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest
            self._pages.keep(page)

    def reset(self) -> None:
        """Forget every page; what runs keeps its own."""
        for page in list(self._digest_of):
            self._pages.forget(page)
        self._page_of.clear()
        self._digest_of.clear()

    def _evicted(self, page: int) -> None:
        del self._page_of[self._digest_of.pop(page)]
