"""Kind `hooks`: observers. Signatures are in `pegboard.plugins.hooks`; an observer implements any of them."""

from __future__ import annotations


class Hooks:
    """Base for observers. Methods named as in `pegboard.plugins.hooks.HookSpecs`, each marked with `hookimpl`, are called.

    An observer that raises is warned about and muted for the rest of the run; it never breaks the run.
    """
