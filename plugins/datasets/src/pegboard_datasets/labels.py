"""Answers that are labelled one by one as desirable or not, as KTO learns from (arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Row
from pegboard_datasets.encode import conversation_row, plain_row
from pegboard_datasets.fields import chosen_columns, number_field, text_field, truth_field
from pegboard_datasets.options import LabelsOptions
from pegboard_datasets.preference import read_answered, read_pair

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


class Labels(Transform):
    """A prompt, an answer and a label a row; a preference pair gives one example of each label.

    Sequences are the parts "desirable" and "undesirable", with the extra `label`. `complete` gives the part "mismatched": a
    prompt with the answer to another one, from which KTO estimates how far the policy has moved.
    """

    def __init__(self, options: LabelsOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return the examples of a row. Raises DataError naming the field that is missing or wrong."""
        options = self._options
        extras = chosen_columns(row, options.columns, "data.format.columns")
        if row.get(options.reference) is not None:
            extras["reference_logps"] = number_field(row, options.reference, "data.format.reference")
        if options.label not in row and options.chosen in row and options.rejected in row:
            pair = read_pair(row, options, tokenizer)
            return [_labelled(answer, label, extras) for answer, label in zip(pair, (True, False), strict=True)]
        label = truth_field(row, options.label, "data.format.label")
        name, option = options.completion, "data.format.completion"
        if not options.chat:
            prompt = text_field(row, options.prompt, "data.format.prompt")
            return [_labelled(plain_row(prompt, text_field(row, name, option), tokenizer), label, extras)]
        messages = read_answered(row, name, option, options)
        return [_labelled(conversation_row(messages, tokenizer, learn="last"), label, extras)]

    def complete(self, example: Example, neighbours: Iterable[Example]) -> Sequence[Example]:
        """Return the prompt with the answer of the nearest neighbour that answers another prompt; nothing where there is none.

        It is no longer than the longer of the two answered prompts.
        """
        if not self._options.mismatched:
            return ()
        (own,) = example
        prompt, _ = _split(own)
        for (other,) in neighbours:
            other_prompt, answer = _split(other)
            if other_prompt.input_ids != prompt.input_ids:
                return ((_join(prompt, answer, max(len(own.input_ids), len(other.input_ids))),),)
        return ()


def _labelled(row: Row, label: bool, extras: Mapping[str, Any]) -> Row:
    return replace(row, extras={**extras, "label": label}, part="desirable" if label else "undesirable")


def _split(row: Row) -> tuple[Row, Row]:
    """Return what comes before the first learned token, and the rest."""
    at = row.mask.index(True, 1)
    return Row(row.input_ids[:at], row.mask[:at]), Row(row.input_ids[at:], row.mask[at:])


def _join(prompt: Row, answer: Row, longest: int) -> Row:
    ids, mask = prompt.input_ids + answer.input_ids, prompt.mask + answer.mask
    return Row(ids[:longest], mask[:longest], part="mismatched")
