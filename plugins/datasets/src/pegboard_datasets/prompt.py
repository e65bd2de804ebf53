"""Prompts alone, which a policy answers itself, and the columns that its answers are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.interfaces.transform import Transform
from pegboard.types import Message, Row
from pegboard_datasets.conversation import as_messages
from pegboard_datasets.encode import prompt_ids
from pegboard_datasets.fields import chosen_columns, field, text_field
from pegboard_datasets.options import PromptOptions

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


class Prompt(Transform):
    """A prompt a row: the part "prompt", which ends where the assistant is to speak, with nothing to learn.

    Its extras are the columns of the row, so that a reward can be computed from them.
    """

    def __init__(self, options: PromptOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return one example. Raises DataError naming the field that is missing or wrong."""
        options = self._options
        names = list(row) if options.columns is None else options.columns
        extras = chosen_columns(row, names, "data.format.columns")
        name, option = options.prompt, "data.format.prompt"
        if options.chat:
            messages = as_messages(field(row, name, option), "user", name, option)
            if options.system is not None and messages[0].role != "system":
                messages = [Message("system", options.system), *messages]
            ids = prompt_ids(messages, tokenizer, row.get(options.tools) or None)
        else:
            ids = tokenizer.encode(text_field(row, name, option))
        return [Row(ids, [False] * len(ids), extras, "prompt")]
