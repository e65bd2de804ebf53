"""The guard of the suites: a standard test is neither deleted nor overridden without a stated reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_STANDARD: dict[type, Mapping[str, Callable[..., Any]]] = {}
"""Suite -> its standard tests by name, as they were when it was defined."""


def standard(suite: type) -> type:
    """Note the tests of a suite, its bases' included. Decorates every class whose tests are standard."""
    tests = {
        name: value
        for base in reversed(suite.__mro__)
        for name, value in vars(base).items()
        if name.startswith("test_") and callable(value)
    }
    _STANDARD[suite] = tests
    return suite


def standard_tests(cls: type) -> Mapping[str, Callable[..., Any]]:
    """Return the standard tests that `cls` must run: those of the nearest suite that it derives from."""
    return next((_STANDARD[base] for base in cls.__mro__ if base in _STANDARD), {})


def problems(cls: type) -> list[str]:
    """Return what is wrong with how `cls` changes its suite, a line each."""
    tests = standard_tests(cls)
    overrides: Mapping[str, str] = getattr(cls, "overrides", {})
    found = []
    for name, test in tests.items():
        now = getattr(cls, name, None)
        if now is test:
            if name in overrides:
                found.append(f"overrides names {name}, which is not overridden")
        elif name not in overrides:
            found.append(f"{name} is {'deleted' if now is None else 'overridden'} without a reason")
        elif not isinstance(overrides[name], str) or not overrides[name].strip():
            found.append(f"{name} is overridden and the reason is empty")
    found += [f"overrides names {name}, which is no standard test" for name in overrides if name not in tests]
    return found
