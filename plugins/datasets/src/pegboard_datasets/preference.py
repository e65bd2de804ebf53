"""Preference pairs: two answers to one prompt, of which one is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pegboard.errors import DataError
from pegboard.interfaces.transform import Transform
from pegboard.types import Example, Message, Row
from pegboard_datasets.conversation import as_messages, parse_dialogue, shared_turns
from pegboard_datasets.encode import conversation_row, plain_row
from pegboard_datasets.fields import chosen_columns, field, number_field, text_field
from pegboard_datasets.options import PreferenceOptions, PromptedOptions

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


class Preference(Transform):
    """A pair a row: an example of two sequences, the parts "chosen" and "rejected".

    Learned are the assistant's turns after what both have in common.
    """

    def __init__(self, options: PreferenceOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Example]:
        """Return one example, with `margin` and the columns asked for as extras of both sequences, and each with the extra
        `reference_logps` where the row has them: the log-probability of what is learned under the reference model.

        Raises DataError naming the field that is missing or wrong.
        """
        options = self._options
        extras = chosen_columns(row, options.columns, "data.format.columns")
        if row.get(options.margin) is not None:
            extras["margin"] = number_field(row, options.margin, "data.format.margin")
        columns = {"chosen": options.reference_chosen, "rejected": options.reference_rejected}
        pair = zip(columns.items(), read_pair(row, options, tokenizer), strict=True)
        return [
            tuple(
                replace(answer, part=part, extras={**extras, **_reference(row, column, part)})
                for (part, column), answer in pair
            )
        ]


def read_pair(row: Mapping[str, Any], options: PromptedOptions, tokenizer: Tokenizer) -> tuple[Row, Row]:
    """Return the better and the worse answer of a row, each with what comes before it."""
    names = {"data.format.chosen": options.chosen, "data.format.rejected": options.rejected}
    if not options.chat:
        prompt = text_field(row, options.prompt, "data.format.prompt")
        better, worse = (plain_row(prompt, text_field(row, names[o], o), tokenizer) for o in names)
        return better, worse
    first, second = (read_answered(row, name, option, options) for option, name in names.items())
    start = shared_turns(first, second)
    return conversation_row(first, tokenizer, start=start), conversation_row(second, tokenizer, start=start)


def read_answered(row: Mapping[str, Any], name: str, option: str, options: PromptedOptions) -> list[Message]:
    """Return the conversation that ends with the answer in field `name`: the prompt, if the row has one, and the answer.

    The answer is text; or messages, which hold the prompt where they begin with anyone but the assistant; or, in a row without a
    prompt, a dialogue of hh-rlhf.
    """
    value = field(row, name, option)
    prompted = row.get(options.prompt) is not None
    if isinstance(value, str) and not prompted:
        messages = parse_dialogue(value, name)
    else:
        messages = as_messages([value] if isinstance(value, Mapping) else value, "assistant", name, option)
    if prompted and messages[0].role == "assistant":
        messages = [*as_messages(row[options.prompt], "user", options.prompt, "data.format.prompt"), *messages]
    if messages[-1].role != "assistant":
        raise DataError(
            f"field {name!r} must end with an answer of the assistant, its last message is of {messages[-1].role!r}",
            fix=f"correct the row or set {option}",
        )
    if len(messages) < 2:
        raise DataError(f"field {name!r} holds an answer without a prompt", fix="set data.format.prompt")
    if options.system is not None and messages[0].role != "system":
        messages = [Message("system", options.system), *messages]
    return messages


def _reference(row: Mapping[str, Any], name: str, side: str) -> dict[str, float]:
    if row.get(name) is None:
        return {}
    return {"reference_logps": number_field(row, name, f"data.format.reference_{side}")}
