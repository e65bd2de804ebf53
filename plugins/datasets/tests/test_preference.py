"""Pairs, labels and prompts, with a tokenizer whose ids are bytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import DataError
from pegboard.types import Message, Row
from pegboard_datasets.labels import Labels
from pegboard_datasets.options import LabelsOptions, PreferenceOptions, PromptOptions
from pegboard_datasets.preference import Preference
from pegboard_datasets.prompt import Prompt

ASK = {"role": "user", "content": "two and two?"}
RIGHT, WRONG = {"role": "assistant", "content": "four"}, {"role": "assistant", "content": "five"}
DIALOGUE = "\n\nHuman: two and two?\n\nAssistant: "
LAYOUTS = [
    {"prompt": "two and two?", "chosen": "four", "rejected": "five"},
    {"prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG]},
    {"prompt": [ASK], "chosen": RIGHT, "rejected": WRONG},
    {"prompt": "two and two?", "chosen": [ASK, RIGHT], "rejected": [ASK, WRONG]},
    {"chosen": [ASK, RIGHT], "rejected": [ASK, WRONG]},
    {"chosen": DIALOGUE + "four", "rejected": DIALOGUE + "five"},
]


def learned(row: Row, tokenizer: Any) -> str:
    return str(tokenizer.decode([i for i, wanted in zip(row.input_ids, row.mask, strict=True) if wanted]))


def pair_of(row: dict[str, Any], tokenizer: Any, **options: Any) -> tuple[Row, Row]:
    ((chosen, rejected),) = Preference(PreferenceOptions(**options))(row, tokenizer)
    return chosen, rejected


@pytest.mark.parametrize("row", LAYOUTS)
def test_every_layout_gives_the_same_pair(tiny_tokenizer: Any, row: dict[str, Any]) -> None:
    chosen, rejected = pair_of(row, tiny_tokenizer)
    ask = Message("user", "two and two?")
    for made, part, answer in ((chosen, "chosen", "four"), (rejected, "rejected", "five")):
        whole = [ask, Message("assistant", answer)]
        assert made.input_ids == tiny_tokenizer.chat(whole, generation_prompt=False)
        assert learned(made, tiny_tokenizer) == answer
        assert (made.part, made.extras) == (part, {})


def test_what_both_have_in_common_is_not_learned(tiny_tokenizer: Any) -> None:
    row = {"chosen": [ASK, WRONG, ASK, RIGHT], "rejected": [ASK, WRONG, ASK, WRONG]}
    assert [learned(r, tiny_tokenizer) for r in pair_of(row, tiny_tokenizer)] == ["four", "five"]
    early = {"chosen": [ASK, RIGHT, ASK, RIGHT], "rejected": [ASK, WRONG]}
    assert [learned(r, tiny_tokenizer) for r in pair_of(early, tiny_tokenizer)] == ["fourfour", "five"]


def test_columns_and_margin_come_with_both_sequences(tiny_tokenizer: Any) -> None:
    row = {**LAYOUTS[0], "margin": "0.5", "reference_chosen": -3.0}
    for made in pair_of(row, tiny_tokenizer, columns=["reference_chosen"], system="be brief"):
        assert made.extras == {"margin": 0.5, "reference_chosen": -3.0}
        assert "system\nbe brief" in tiny_tokenizer.decode(made.input_ids)


def test_log_probabilities_of_a_reference_belong_to_their_side(tiny_tokenizer: Any) -> None:
    row = {**LAYOUTS[0], "reference_chosen_logps": -3, "worse": "-4.5"}
    chosen, rejected = pair_of(row, tiny_tokenizer, reference_rejected="worse")
    assert (chosen.extras, rejected.extras) == ({"reference_logps": -3.0}, {"reference_logps": -4.5})
    labelled = {"prompt": "a", "completion": "b", "label": True, "reference_logps": -2.0}
    (made,) = Labels(LabelsOptions())(labelled, tiny_tokenizer)
    assert made.extras == {"reference_logps": -2.0, "label": True}
    with pytest.raises(DataError, match="field 'worse' must be a number, found str 'x'"):
        pair_of({**row, "worse": "x"}, tiny_tokenizer, reference_rejected="worse")


def test_pairs_of_plain_text(tiny_tokenizer: Any) -> None:
    chosen, rejected = pair_of(LAYOUTS[0], tiny_tokenizer, chat=False)
    eos = tiny_tokenizer.eos_ids[0]
    assert chosen.input_ids == [*tiny_tokenizer.encode("two and two?"), *b"four", eos]
    assert learned(chosen, tiny_tokenizer) == "four"
    assert learned(rejected, tiny_tokenizer) == "five"
    assert chosen.mask[-1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'; the row has: prompt, chosen"),
        ({"chosen": "b", "rejected": "c"}, "field 'chosen' must be a dialogue"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "field 'chosen' must be a list of messages, found int"),
        ({"prompt": "a", "chosen": [ASK], "rejected": "c"}, "field 'chosen' must end with an answer of the assistant"),
        ({"chosen": [RIGHT], "rejected": [WRONG]}, "field 'chosen' holds an answer without a prompt"),
        ({**LAYOUTS[0], "margin": "much"}, "field 'margin' must be a number, found str 'much'"),
        ({**LAYOUTS[0], "margin": True}, "field 'margin' must be a number, found bool True"),
    ],
)
def test_a_bad_pair_is_described(tiny_tokenizer: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        pair_of(row, tiny_tokenizer)


@pytest.mark.parametrize(
    ("label", "part"),
    [(True, "desirable"), ("false", "undesirable"), (1, "desirable"), ("0", "undesirable"), ("True", "desirable")],
)
def test_labelled_answers(tiny_tokenizer: Any, label: object, part: str) -> None:
    row = {"prompt": "two and two?", "completion": "four", "label": label, "weight": 2}
    (made,) = Labels(LabelsOptions(columns=["weight"]))(row, tiny_tokenizer)
    assert learned(made, tiny_tokenizer) == "four"
    assert (made.part, made.extras) == (part, {"weight": 2, "label": part == "desirable"})
    (plain,) = Labels(LabelsOptions(chat=False))(row, tiny_tokenizer)
    assert learned(plain, tiny_tokenizer) == "four"


def test_a_pair_is_one_answer_of_each_label(tiny_tokenizer: Any) -> None:
    made = Labels(LabelsOptions())(LAYOUTS[1], tiny_tokenizer)
    assert [(r.part, r.extras["label"], learned(r, tiny_tokenizer)) for r in made] == [
        ("desirable", True, "four"),
        ("undesirable", False, "five"),
    ]


def test_a_label_that_is_none(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="field 'label' must be true or false, found str 'good'"):
        Labels(LabelsOptions())({"prompt": "a", "completion": "b", "label": "good"}, tiny_tokenizer)


def test_a_prompt_meets_an_answer_to_another_one(tiny_tokenizer: Any) -> None:
    labels = Labels(LabelsOptions())
    rows = [{"prompt": p, "completion": a, "label": True} for p, a in (("p", "one"), ("p", "two"), ("q", "three"))]
    first, second, third = (tuple(labels(row, tiny_tokenizer)) for row in rows)
    ((made,),) = labels.complete(third, [second, first])
    assert made.part == "mismatched"
    # Cut to the longer of the two; the answer is the nearest neighbour's, but never one to the same prompt.
    assert made.input_ids == tiny_tokenizer.chat(
        [Message("user", "q"), Message("assistant", "two")], generation_prompt=False
    )
    assert learned(made, tiny_tokenizer) == "two"
    ((made,),) = labels.complete(first, iter([second, third]))
    assert learned(made, tiny_tokenizer) == "three"
    assert labels.complete(first, [second]) == labels.complete(first, []) == ()
    assert Labels(LabelsOptions(mismatched=False)).complete(third, [first]) == ()


def test_prompts_keep_what_rewards_need(tiny_tokenizer: Any) -> None:
    row = {"question": "two and two?", "answer": "#### 4", "level": 1}
    (made,) = Prompt(PromptOptions(prompt="question"))(row, tiny_tokenizer)
    assert made.input_ids == tiny_tokenizer.chat([Message("user", "two and two?")])
    assert made.mask == [False] * len(made.input_ids)
    assert (made.part, made.extras) == ("prompt", row)
    (few,) = Prompt(PromptOptions(prompt="question", columns=["answer"], chat=False))(row, tiny_tokenizer)
    assert few.input_ids == tiny_tokenizer.encode("two and two?")
    assert few.extras == {"answer": "#### 4"}
    (talk,) = Prompt(PromptOptions(system="s"))({"prompt": [ASK, RIGHT, ASK]}, tiny_tokenizer)
    assert tiny_tokenizer.decode(talk.input_ids).endswith("assistant\n")
    with pytest.raises(DataError, match="no field 'reply'"):
        Prompt(PromptOptions(columns=["reply"]))({"prompt": "x"}, tiny_tokenizer)


def test_real_pairs(tiny_tokenizer: Any) -> None:
    path = Path(__file__).parents[3].parent / "shared/data/hh_rlhf_harmless_test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for _, line in zip(range(300), lines, strict=False)]
    for row in rows:
        chosen, rejected = pair_of(row, tiny_tokenizer)
        assert any(chosen.mask) and any(rejected.mask)
