"""Who may ask: API keys, and the names that a browser may call a server without keys by."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from pegboard.errors import ConfigError

KEYS_VARIABLE = "PEGBOARD_API_KEYS"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Keys:
    """Compares in a time that tells nothing of the keys: digests of one length, all of them, whatever was found before."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in dict.fromkeys(keys)]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: bytes | None) -> int | None:
        """Return which of the keys the header `Authorization: Bearer KEY` shows, from 1; 0 where there are none, None for no or a
        wrong one.
        """
        if not self._digests:
            return 0
        scheme, _, given = (authorization or b"").partition(b" ")
        digest = sha256(given.strip()).digest()
        number = sum(n * hmac.compare_digest(digest, own) for n, own in enumerate(self._digests, 1))
        return number if number and scheme.lower() == b"bearer" else None


def read_keys(given: Sequence[str], file: str | None, environment: str | None = None) -> tuple[str, ...]:
    """Return the keys given one by one, in a file (a line each; # begins a comment) and in the environment (with commas between).

    Raises ConfigError for a file that cannot be read or is open to others, and for keys that a header cannot carry.
    """
    keys = [*given, *(key.strip() for key in (environment or "").split(",") if key.strip())]
    if file is not None:
        path = Path(file)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of keys {file} cannot be read: {error}", fix="name another file") from error
        if os.name == "posix" and mode & 0o007:
            raise ConfigError(f"the file of keys {file} can be read by every user", fix=f"chmod 600 {file}")
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(f"the file of keys {file} holds no key", fix="write one on a line, or leave the file out")
        keys += found
    for number, key in enumerate(keys, 1):
        if len(key) < 8 or not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
            raise ConfigError(
                f"API key {number} has {len(key)} characters or signs that a header cannot carry",
                fix="use at least 8 letters and digits, made by: openssl rand -hex 24",
            )
    return tuple(dict.fromkeys(keys))


def host_name(header: bytes) -> str:
    """Return the name in a Host header, without its port."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() else text
