"""For which kind of accelerator the installed torch is built, read without importing it."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path


def torch_build() -> dict[str, str | None]:
    """Return the constants of torch's own version file: "__version__", and for each kind of accelerator that it knows the version of
    the toolkit that it is built with, or None. Empty where torch is not installed or tells nothing.

    The version alone does not say it: wheels of the main package index carry no local part.
    """
    try:
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
        statements = ast.parse(text).body
    except (metadata.PackageNotFoundError, OSError, SyntaxError, ValueError):
        return {}
    found: dict[str, str | None] = {}
    for statement in statements:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if not isinstance(value, ast.Constant) or not (value.value is None or isinstance(value.value, str)):
            continue
        assert isinstance(statement, ast.Assign | ast.AnnAssign)
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        found |= {target.id: value.value for target in targets if isinstance(target, ast.Name)}
    return found
