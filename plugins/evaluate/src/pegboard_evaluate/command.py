"""`peg eval`: measures of a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pegboard.errors import ConfigError
from pegboard_engine.commands.options import load, model_options

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM

FILE = click.Path(path_type=Path)


@click.command("eval")
@click.argument("model")
@click.option("--tasks", metavar="NAME,…", help="Tasks of lm-eval by name, or YAML files of tasks.")
@click.option("--task-folder", metavar="FOLDER", type=FILE, help="A folder of further task files.")
@click.option("--perplexity", "text_file", metavar="FILE", type=FILE, help="A text whose perplexity is measured.")
@click.option(
    "--exact-match", "question_file", metavar="FILE", type=FILE, help="JSON lines {question, answer}, as GSM8K's."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Documents of each task, or questions.")
@click.option("--shots", type=click.IntRange(min=0), metavar="N", help="Worked examples in front.")
@click.option("--shots-from", metavar="FILE", type=FILE, help="Where those of --exact-match come from.")
@click.option("--chat/--raw", "chat", default=False, help="With the model's chat template.  [default: raw]")
@click.option("--max-tokens", default=512, show_default=True, type=click.IntRange(min=1), help="Of an exact answer.")
@click.option("--length", type=int, metavar="N", help="Tokens of a window of --perplexity.  [default: the context]")
@click.option("--stride", type=int, metavar="N", help="Tokens that a window scores.  [default: all but its first]")
@click.option("--seed", default=0, show_default=True, help="Of lm-eval's choice of examples.")
@click.option(
    "--samples", "sample_file", metavar="FILE", type=FILE, help="Write every question and answer there, as JSON lines."
)
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write the figures there; alone, print them.",
)
@model_options
def evaluate(
    model: str,
    tasks: str | None,
    text_file: Path | None,
    question_file: Path | None,
    sample_file: Path | None,
    json_file: str | None,
    **options: Any,
) -> None:
    """Measure MODEL: a file, a folder (of a model or an adapter) or a hub id, through the engine.

    Any of --tasks, --perplexity and --exact-match may be combined.
    """
    from pegboard_evaluate.exact import exact_match, read_questions
    from pegboard_evaluate.harness import EngineModel, figures, find_tasks, run_tasks
    from pegboard_evaluate.perplexity import perplexity, read_text
    from pegboard_evaluate.report import lines

    asked = {
        name: options.pop(name)
        for name in ("task_folder", "limit", "shots", "shots_from", "chat", "max_tokens", "length", "stride", "seed")
    }
    if tasks is None and text_file is None and question_file is None:
        raise ConfigError("nothing is asked for", fix="give --tasks, --perplexity or --exact-match")
    _check_writable(sample_file, None if json_file in (None, "-") else Path(str(json_file)))
    # What is wrong with files and names is told before a model is read.
    wanted = None if tasks is None else find_tasks([n for n in tasks.split(",") if n], asked["task_folder"])
    text = None if text_file is None else read_text(text_file)
    questions = None if question_file is None else read_questions(question_file, asked["limit"])
    shots = [] if asked["shots_from"] is None else read_questions(asked["shots_from"], asked["shots"])
    if questions is not None and asked["shots"] and not shots:
        raise ConfigError("--shots of an exact match need examples", fix="name a file of them with --shots-from")
    told: dict[str, Mapping[str, float]] = {}
    samples: list[dict[str, Any]] = []
    with load(model, options) as llm:
        _check_chat(llm, model, asked["chat"])
        if text is not None:
            bar = _Bar("perplexity")
            found = perplexity(llm, text, length=asked["length"], stride=asked["stride"], done=bar.at)
            told[str(text_file)] = found.figures()
        if questions is not None:
            numbers, rows = exact_match(llm, questions, shots, chat=asked["chat"], max_tokens=asked["max_tokens"])
            told[str(question_file)] = numbers
            samples += [{"task": str(question_file), **row} for row in rows]
        if wanted is not None:
            results = run_tasks(
                EngineModel(llm, _bars),
                *wanted,
                shots=asked["shots"],
                limit=asked["limit"],
                chat=asked["chat"],
                seed=asked["seed"],
            )
            told |= figures(results)
            samples += [{"task": task, **row} for task, rows in results.get("samples", {}).items() for row in rows]
    if sample_file is not None:
        with sample_file.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in samples)
    content = json.dumps({"model": model, "results": told}, indent=2, ensure_ascii=False)
    if json_file not in (None, "-"):
        Path(str(json_file)).write_text(content + "\n", encoding="utf-8")
    click.echo(content if json_file == "-" else "\n".join(lines(told)))


class _Bar:
    """A progress bar on a terminal, made when the total is known."""

    def __init__(self, label: str) -> None:
        self._label, self._shown = label, 0
        self._bar: Any = None

    def at(self, count: int, total: int) -> None:
        if self._bar is None:
            self._bar = click.progressbar(
                length=total, label=self._label, file=sys.stderr, hidden=not sys.stderr.isatty()
            )
        self._bar.update(count - self._shown)
        self._shown = count
        if count >= total:
            self._bar.render_finish()


def _bars(label: str, total: int) -> Callable[[int], None]:
    bar, count = _Bar(label), 0

    def done(more: int) -> None:
        nonlocal count
        count += more
        bar.at(count, total)

    return done


def _check_chat(llm: LLM, model: str, chat: bool) -> None:
    if chat and not llm.tokenizer.has_chat_template:
        raise ConfigError(f"{model} has no chat template", fix="leave --chat out")


def _check_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"the folder {path.absolute().parent} does not exist", fix="make it first")
