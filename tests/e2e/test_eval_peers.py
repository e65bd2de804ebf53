"""`peg eval --tasks` against lm-eval's own model on transformers: the same numbers for the same task files, without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pegboard.cli import run_cli

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

CONTEXT = 96
HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
num_fewshot: 0
"""
TASKS = {
    "words": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: 1
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "letters": """\
output_type: multiple_choice
doc_to_text: "{{question}} "
doc_to_choice: ["a", "b", "w"]
doc_to_target: 2
metric_list: [{metric: acc}]
""",
    "rolling": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "until": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "five"
generation_kwargs: {until: ["q", "h"], max_gen_toks: 24, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match}]
""",
}
# Of Hugging Face's `datasets` and others, none of which is ours to mend.
QUIET = "ignore::Warning"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    words = "zero one two three four five six seven eight nine".split()
    rows = [
        {
            "question": f"what is {words[n]} and {words[9 - n]}{'?' * (n % 3)}",
            "choices": [" five", " nine", ", the sum of them"],
            "text": " ".join(words[: n + 1]) * (1 + 3 * n),
        }
        for n in range(8)
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(name=f"toy_{name}", data=folder / "documents.jsonl") + text)
    return folder


def answers(samples: list[Mapping[str, Any]]) -> dict[int, Any]:
    return {sample["doc_id"]: sample["resps"] for sample in samples}


@pytest.mark.filterwarnings(QUIET)
def test_figures_and_answers_are_those_of_lm_evals_own_model(
    toy_model: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = [f"toy_{name}" for name in TASKS]
    # One task by its file, the others by their names in a folder.
    asked = ",".join([str(tasks / "words.yaml"), *names[1:]])
    files = ["--json", str(tmp_path / "figures.json"), "--samples", str(tmp_path / "samples.jsonl")]
    options = ["--platform", "cpu", "--dtype", "float32", "--kv-memory", "8MB", "--max-model-len", str(CONTEXT)]
    assert run_cli(["eval", str(toy_model), "--tasks", asked, "--task-folder", str(tasks), *files, *options]) == 0
    told = json.loads((tmp_path / "figures.json").read_text())["results"]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    # lm-eval counts the tokens that go in, we those of the whole text: the last one never goes in.
    settings = f"pretrained={toy_model},dtype=float32,max_length={CONTEXT - 1},add_bos_token=False"
    theirs = simple_evaluate(
        model="hf",
        model_args=settings,
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks)),
        device="cpu",
        batch_size=4,
    )
    assert set(told) == set(names)
    for name in names:
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert told[name][metric.removesuffix(",none")] == pytest.approx(value, rel=1e-4), (name, metric)
        ours = answers([line for line in lines if line["task"] == name])
        right = answers(theirs["samples"][name])
        assert len(ours) == 8 and set(ours) == set(right)
        for document, expected in right.items():
            compare(ours[document], expected, f"{name}, document {document}")


def compare(ours: Any, theirs: Any, where: str) -> None:
    """Compare nested answers: texts and booleans are equal, log-probabilities close."""
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for mine, other in zip(ours, theirs, strict=True):
            compare(mine, other, where)
    elif isinstance(theirs, float) and not isinstance(theirs, bool):
        assert float(ours) == pytest.approx(theirs, rel=1e-4, abs=1e-4), where
    else:
        assert ours == theirs or str(ours) == str(theirs), where


@pytest.mark.filterwarnings(QUIET)
def test_tasks_that_are_not_there_are_named(peg: Any, toy_model: Path, tasks: Path) -> None:
    for name, said in (
        ("toy_wrods", "did you mean 'toy_words'"),
        ("nowhere.yaml", "no task file"),
        ("toy_words", "nowhere"),
    ):
        folder = "nowhere" if said == "nowhere" else tasks
        answer = peg("eval", toy_model, "--tasks", name, "--task-folder", folder)
        assert answer.status == 2
        assert said in answer.err
