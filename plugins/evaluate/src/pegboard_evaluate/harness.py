"""Tasks of lm-eval (EleutherAI's evaluation harness) over the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pegboard.errors import ConfigError, nearest
from pegboard.types import Message, SamplingParams
from pegboard_evaluate.perplexity import windows
from pegboard_evaluate.scoring import Pair, answered, groups, score

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM

MAX_TOKENS = 256
"""Tokens of an answer where a task does not say."""

NEEDS = "pip install 'pegboard-evaluate[tasks]'"
FILES = (".yaml", ".yml")

Told = Mapping[str, Any]


class EngineModel:
    """What lm-eval asks of a model, answered by the engine. Knows no class of lm-eval: `as_lm` adds its base.

    Requests are lm-eval's instances, of which only `args` is read: (context, continuation), (text,) or (context, settings).
    """

    def __init__(self, llm: LLM, bar: Any = None) -> None:
        super().__init__()
        self.llm, self.bar = llm, bar
        tokenizer = llm.tokenizer
        ends = tokenizer.eos_ids
        self._prefix = tokenizer.bos_id if tokenizer.bos_id is not None else (ends[0] if ends else 0)
        # Tokenizers that put a marker in front of every text do so here too, as transformers' do.
        self._marks = tokenizer.encode("a") != tokenizer.encode("a", special=False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-probability, whether greedy) of each continuation after its context."""
        pairs = [self._pair(*request.args) for request in requests]
        return [
            (one.logprob, one.greedy) for one in score(self.llm, pairs, self._done("log-probabilities", len(pairs)))
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows of the whole context that do not overlap."""
        longest = self.llm.engine.max_model_len
        owners: list[int] = []
        pairs: list[Pair] = []
        for index, request in enumerate(requests):
            tokens = self.llm.tokenizer.encode(request.args[0], special=False)
            found = list(windows(tokens, self._prefix, longest, longest - 1))
            owners += [index] * len(found)
            pairs += found
        sums = [0.0] * len(requests)
        for owner, one in zip(owners, score(self.llm, pairs, self._done("texts", len(pairs))), strict=True):
            sums[owner] += one.logprob
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each context, cut before the first of its stop texts."""
        done = self._done("answers", len(requests))
        texts = []
        for group in groups(requests):
            params = [sampling(request.args[1]) for request in group]
            prompts = [
                self._context(request.args[0], one.max_tokens) for request, one in zip(group, params, strict=True)
            ]
            texts += [answered(generation).outputs[0].text for generation in self.llm.generate(prompts, params)]
            done(len(group))
        return texts

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's template writes it; without a prompt for an answer its last turn stays open."""
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
        text = self.llm.tokenizer.chat_text(turns, generation_prompt=add_generation_prompt)
        if add_generation_prompt or not turns or turns[-1].role != "assistant":
            return text
        end = text.rfind(turns[-1].content)
        return text[: end + len(turns[-1].content)] if end >= 0 else text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return a name for the template: lm-eval keeps it with the results."""
        return "the model's own" if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """A name under which lm-eval may keep rendered requests."""
        return str(self.llm.built.files.config.get("_name_or_path") or "pegboard")

    def _pair(self, context: str, continuation: str) -> Pair:
        """Return ids of both, divided where the ids of the context end. Spaces at the context's end belong to the continuation.

        (The convention of lm-eval's own models.)
        """
        tokenizer = self.llm.tokenizer
        if not context:
            ids = tokenizer.encode(continuation, special=False)
            return (ids[:1], ids[1:]) if ids[:1] == [self._prefix] else ([self._prefix], ids)
        kept = context.rstrip()
        whole = self._encode(context + continuation)
        length = len(self._encode(kept)) if kept else 0
        return (whole[:length], whole[length:]) if length else ([self._prefix], whole)

    def _encode(self, text: str) -> list[int]:
        """Return ids with the marker that the tokenizer puts in front, unless the text (a rendered conversation) begins with it."""
        tokenizer = self.llm.tokenizer
        plain = tokenizer.encode(text, special=False)
        return plain if not self._marks or plain[:1] == [tokenizer.bos_id] else tokenizer.encode(text)

    def _context(self, text: str, room: int) -> list[int]:
        """Return the ids of a context, its end only where the whole leaves no room for an answer."""
        longest = self.llm.engine.max_model_len - room
        if longest < 1:
            raise ConfigError(
                f"a task asks for answers of {room} tokens, the engine takes {self.llm.engine.max_model_len} in all",
                fix="raise --max-model-len",
            )
        return (self._encode(text) or [self._prefix])[-longest:]

    def _done(self, what: str, total: int) -> Any:
        return (lambda count: None) if self.bar is None else self.bar(what, total)


def sampling(settings: Told) -> SamplingParams:
    """Return how an answer is sampled, from a task's `generation_kwargs`: greedy unless `do_sample` is set."""
    until = settings.get("until") or ()
    stops = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    most = settings.get("max_gen_toks") or settings.get("max_new_tokens") or settings.get("max_tokens") or MAX_TOKENS
    drawn: dict[str, Any] = {"temperature": 0.0}
    if settings.get("do_sample"):
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        drawn = {name: settings[name] for name in names if settings.get(name) is not None}
    return SamplingParams(max_tokens=int(most), stop=stops, **drawn)


def as_lm(model: EngineModel) -> Any:
    """Return the model as an instance of lm-eval's `LM`."""
    base: Any = import_module("lm_eval.api.model").LM
    made: Any = type("PegboardLM", (EngineModel, base), {})
    return made(model.llm, model.bar)


def find_tasks(names: Sequence[str], folder: Path | None) -> tuple[Any, list[Any]]:
    """Return lm-eval's task manager and the tasks: names of its own or of `folder`, or YAML files.

    Raises ConfigError when lm-eval is not installed, for a name that it does not know, and for a file that is not there.
    """
    try:
        tasks: Any = import_module("lm_eval.tasks")
    except ModuleNotFoundError as error:
        raise ConfigError(f"--tasks needs lm-eval ({error.name} is not installed)", fix=NEEDS) from None
    files = {name: Path(name) for name in names if Path(name).suffix in FILES}
    for name, path in files.items():
        if not path.is_file():
            raise ConfigError(f"there is no task file {name}", fix="check the path")
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", fix="--task-folder is a folder of task files")
    paths = [str(path.parent) for path in files.values()] + ([str(folder)] if folder is not None else [])
    manager = tasks.TaskManager(include_path=list(dict.fromkeys(paths)) or None)
    known = [name if name not in files else _task_of(files[name]) for name in names]
    for name in known:
        if not manager.match_tasks([name]):
            raise ConfigError(
                f"lm-eval has no task {name!r}{nearest(name, manager.all_tasks)}",
                fix="`lm_eval ls tasks` names them all",
            )
    return manager, known


def run_tasks(
    model: EngineModel,
    manager: Any,
    tasks: Sequence[Any],
    *,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Run tasks and return lm-eval's results: "results" (figures by task), "n-samples", "versions", "samples" and more."""
    found: dict[str, Any] | None = import_module("lm_eval").simple_evaluate(
        model=as_lm(model),
        tasks=list(tasks),
        num_fewshot=shots,
        limit=limit,
        apply_chat_template=chat,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return dict(found or {})


def figures(results: Told) -> dict[str, dict[str, float]]:
    """Return lm-eval's figures as {task: {"acc": 0.5, "acc_stderr": 0.1, …}}; names of filters stay behind a comma."""
    told: dict[str, dict[str, float]] = {}
    for task, values in results["results"].items():
        numbers = {}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                continue
            numbers[name.removesuffix(",none")] = float(value)
        told[task] = numbers
    return told


def _task_of(path: Path) -> str:
    """Return the name that a task file gives its task (`task:`) or group (`group:`)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key in ("task", "group") and value.strip() and not value.strip().startswith("["):
            return value.strip().strip("\"'")
    raise ConfigError(f"{path} names no task", fix="a task file has a line `task: NAME`")
