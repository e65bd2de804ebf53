"""Prompts of texts and of token ids."""

from __future__ import annotations

from collections.abc import Sequence

from pegboard_server.errors import bad_request
from pegboard_server.served import Served

Prompt = str | list[int]


def prompt_list(served: Served, prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[Prompt]:
    """Return the prompts of a request one by one. Raises ApiError when they are too many."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [list(prompt)]  # type: ignore[arg-type]
    most = served.options.limits.prompts
    if len(prompt) > most:
        raise bad_request(f"{len(prompt)} prompts are too many, at most {most} are allowed")
    return [item if isinstance(item, str) else list(item) for item in prompt]  # type: ignore[arg-type]


async def prompt_ids(served: Served, prompts: Sequence[Prompt], name: str) -> list[list[int]]:
    """Return token ids. name: the field, for errors. Raises ApiError for ids that no token has and for texts without tokens."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(await served.renderer.encode_all(texts))
    found = [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]
    for ids in found:
        if not ids:
            raise bad_request(f"{name}: a text without tokens", name)
        if max(ids) >= served.vocab_size:
            raise bad_request(f"{name}: {max(ids)} is not a token id below {served.vocab_size}", name)
    return found
