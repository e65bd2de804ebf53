"""Plain text to ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.interfaces.transform import Transform
from pegboard.types import Row
from pegboard_datasets.fields import text_field
from pegboard_datasets.options import PlainOptions

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


class PlainText(Transform):
    """One text a row, every token of it to be learned."""

    def __init__(self, options: PlainOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return one example. Raises DataError naming the field that is missing or wrong."""
        ids = tokenizer.encode(text_field(row, self._options.field, "data.format.field"))
        if self._options.end and tokenizer.eos_ids and (not ids or ids[-1] not in tokenizer.eos_ids):
            ids = [*ids, tokenizer.eos_ids[0]]
        return [Row(ids, [True] * len(ids))]
