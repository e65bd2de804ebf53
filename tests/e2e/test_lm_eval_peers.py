"""lm-eval over HTTP against `peg serve`: its numbers and texts are those that it finds with transformers in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from benchmarks.chaos import Server

pytestmark = [pytest.mark.peers, pytest.mark.timeout(2400)]

KEY = "key-of-the-test"
CONTEXT = 256
Samples = dict[str, list[Any]]
"""By task: of each document, in the order of the file, what the model answered to each of its requests."""
Evaluate = Callable[..., Samples]

CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
num_fewshot: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""
# Letters that no special token has, whose texts transformers would stop at too.
UNTIL = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "five"
num_fewshot: 0
generation_kwargs: {{until: ["q", "h"], max_gen_toks: 24, do_sample: false, temperature: 0.0}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"toy_choice": CHOICE, "toy_rolling": ROLLING, "toy_until": UNTIL}


@pytest.fixture(scope="module")
def tasks(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks with their documents. The longest texts are longer than the context."""
    folder = tmp_path_factory.mktemp("tasks")
    words = "zero one two three four five six seven eight nine".split()
    rows = []
    for n in range(10):
        question = f"what is {words[n]} and {words[9 - n]}{'?' * (n % 3)}"
        likely = most_likely(toy_model, question)
        text = " ".join(words[: n + 1]) * (1 + 3 * n)
        rows.append({"question": question, "choices": [" five", " nine", ", the sum of them", likely], "text": text})
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(name=name, data=data))
    return folder


def most_likely(folder: Path, text: str) -> str:
    """Return the most likely next token, or a question mark where it is no text of its own."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt").input_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [*ids[0].tolist(), int(model(ids).logits[0, -1].argmax())]
    found = str(tokenizer.decode(ids[-1:]))
    return found if tokenizer(text + found).input_ids == ids else "?"


@pytest.fixture(scope="module")
def evaluate(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """Return a function that runs `lm_eval` and gives what it logged. arguments: of the model. flags: further ones."""
    home = tmp_path_factory.mktemp("home")

    def run(model: str, arguments: Mapping[str, Any], *flags: str, names: Any = tuple(TASKS)) -> Samples:
        output = tmp_path_factory.mktemp("output")
        given = ",".join(f"{key}={value}" for key, value in arguments.items())
        command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", given, "--tasks", *names]
        command += ["--include_path", str(tasks), "--output_path", str(output), "--log_samples", "--batch_size", "1"]
        offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": KEY}
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env={**os.environ, **offline})
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        assert "Retrying" not in done.stderr
        return {name: read(output, name) for name in names}

    return run


def read(output: Path, name: str) -> list[Any]:
    """Return what was logged for a task."""
    (path,) = output.rglob(f"samples_{name}_*.jsonl")
    rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [row["resps"] for row in rows]


@pytest.fixture(scope="module")
def server(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ["--platform", "cpu", "--dtype", "float32", "--kv-memory", "4MB", "--name", "toy", "--api-key", KEY]
    made = Server(str(toy_model), options, log)

    async def ready() -> None:
        async with aiohttp.ClientSession(made.url) as session:
            await made.ready(session)

    asyncio.run(ready())
    yield made
    assert made.stop() == 0, log.read_text()


@pytest.fixture(scope="module")
def expected(evaluate: Evaluate, toy_model: Path) -> Samples:
    """What transformers says, in lm-eval's own process."""
    # Over HTTP there must be room for a token that is generated, and for one more before a window of a long text.
    return evaluate("hf", {"pretrained": toy_model, "dtype": "float32", "max_length": CONTEXT - 2}, "--device", "cpu")


def completions(server: Server, **more: Any) -> dict[str, Any]:
    return {"base_url": f"{server.url}/v1/completions", "model": "toy", "max_length": CONTEXT, **more}


def numbers(responses: Any) -> list[float]:
    """Return the log-likelihoods, each followed by whether it is of greedy tokens, that were logged for a document."""
    if isinstance(responses, list):
        return [number for one in responses for number in numbers(one)]
    return [float({"True": 1, "False": 0}.get(responses, responses))]


def compare(found: Samples, expected: Samples) -> None:
    assert found["toy_until"] == expected["toy_until"]
    for task in ("toy_choice", "toy_rolling"):
        assert numbers(found[task]) == pytest.approx(numbers(expected[task]), rel=1e-6, abs=1e-4)


def test_prompts_of_token_ids(evaluate: Evaluate, server: Server, toy_model: Path, expected: Samples) -> None:
    greedy = numbers(expected["toy_choice"])[1::2]
    assert len(greedy) == 4 * 10
    assert 0 < sum(greedy) <= 10
    found = evaluate("local-completions", completions(server, tokenizer=toy_model, tokenizer_backend="huggingface"))
    compare(found, expected)


def test_texts_in_batches_at_once(evaluate: Evaluate, server: Server, toy_model: Path, expected: Samples) -> None:
    local = {"tokenizer": toy_model, "tokenizer_backend": "huggingface", "tokenized_requests": False}
    model = completions(server, **local, num_concurrent=3)
    compare(evaluate("local-completions", model, "--batch_size", "4"), expected)


def test_a_client_without_a_tokenizer(evaluate: Evaluate, server: Server, expected: Samples) -> None:
    compare(evaluate("local-completions", completions(server, tokenizer_backend="remote", auth_token=KEY)), expected)


def test_conversations(evaluate: Evaluate, server: Server, toy_model: Path) -> None:
    flags, task = ("--apply_chat_template",), ("toy_until",)
    url = {"base_url": f"{server.url}/v1/chat/completions", "model": "toy"}
    found = evaluate("local-chat-completions", {**url, "eos_string": "<|im_end|>"}, *flags, names=task)
    local = {"pretrained": toy_model, "dtype": "float32"}
    assert found == evaluate("hf", local, "--device", "cpu", *flags, names=task)
