"""A fake platform, attention backend, family, objective and logger, each a distribution of its own, train and generate.

They are installed into a temporary folder and found by the real index, in processes of their own; the first-party plugins of these five
kinds are not on the allow-list. Nothing of the core is edited or patched.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.weights import read_folder, write_safetensors
from pegboard_sdk.site import Site

DISTS = Path(__file__).parent / "dists"
OFFERS = {
    "fake-platform": {("platform", "cork"): "fake_platform.plugin:SPEC"},
    "fake-attention": {("attention", "loops"): "fake_attention.plugin:SPEC"},
    "fake-family": {("model", "side-by-side"): "fake_family.plugin:SPEC"},
    "fake-objective": {
        ("objective", "squares"): "fake_objective.plugin:OBJECTIVE",
        ("recipe", "squares"): "fake_objective.plugin:RECIPE",
    },
    "fake-logger": {("logger", "notebook"): "fake_logger.plugin:SPEC"},
}
AROUND = "pegboard-trainer pegboard-datasets pegboard-tokenizers pegboard-hub pegboard-engine"
REPLACED = "cpu cuda rocm xpu triton sdpa llama qwen sft console jsonl lora".split()
CONFIG = {
    "architectures": ["SideBySideForCausalLM"],
    "model_type": "side_by_side",
    "width": 16,
    "heads": 4,
    "key_heads": 2,
    "inner": 24,
    "depth": 2,
    "reach": 64,
}
TAIL = """
import json, sys
import fake_platform.board as board
first_party = {name.partition('.')[0] for name in sys.modules if name.startswith('pegboard_')}
print(json.dumps({"status": status, "calls": board.CALLS, "loaded": sorted(first_party)}), file=sys.stderr)
"""
RUN = "import sys\nfrom pegboard.cli import run_cli\nstatus = run_cli(sys.argv[1:])\n" + TAIL
CHECK = (
    """
import sys, torch
from pegboard.types import AttentionInputs
from pegboard_engine import LLM, SamplingParams
llm = LLM(sys.argv[1], page_size=4)
assert llm.built.platform_name == "cork" and llm.built.attention_name == "loops", llm.built
prompts = [[1, 5, 9], [7] * 11, [3]]
answers = llm.generate(prompts, SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
with torch.inference_mode():
    for prompt, answer in zip(prompts, answers):
        tokens = list(prompt)
        for _ in range(6):
            ctx = llm.built.context([len(tokens)], torch.arange(len(tokens)))
            logits = llm.built.model.head(llm.built.model(torch.tensor(tokens), ctx))
            tokens.append(int(logits[-1].argmax()))
        assert answer.outputs[0].token_ids == tokens[len(prompt):]
status = 0
"""
    + TAIL
)


@pytest.fixture
def fakes(plugin_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    for dist, plugins in OFFERS.items():
        package = dist.replace("-", "_")
        folder = DISTS / package
        modules = {f"{package}.{path.stem}": path.read_text() for path in folder.glob("*.py")}
        files = {f"{package}/configs/{path.name}": path.read_text() for path in folder.glob("configs/*")}
        plugin_site.add(dist, plugins, modules, files=files)
    allowed = ",".join([*OFFERS, *AROUND.split()])
    monkeypatch.setenv("PEGBOARD_PLUGINS", allowed)
    return plugin_site


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of the fake architecture with random weights and a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "model"
    folder.mkdir()
    letters = ["<end>", *"abcdefghijklmnopqrstuvwxyz ."]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    config = {**CONFIG, "vocab_size": len(letters), "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    width, inner, size = 16, 24, len(letters)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size, width), "lm_head.weight": (size, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(2):
        block = f"model.layers.{layer}."
        shapes |= {block + "norm.weight": (width,)}
        shapes |= {
            block + f"attention.{name}_proj.weight": (rows, width)
            for name, rows in zip("qkvo", (16, 8, 8, 16), strict=True)
        }
        shapes |= {block + f"feed_forward.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {block + "feed_forward.down_proj.weight": (width, inner)}
    weights = [
        (name, torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.3)
        for name, shape in shapes.items()
    ]
    write_safetensors(folder / "model.safetensors", weights)
    return folder


def child(source: str, *arguments: object) -> tuple[str, dict[str, Any]]:
    """Run Python and return what it printed, and what it told of itself at the end."""
    command = [sys.executable, "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    assert told["status"] == 0, done.stdout + done.stderr
    loaded = [name for name in told["loaded"] if name.removeprefix("pegboard_") in REPLACED]
    assert not loaded, f"first-party plugins of the replaced kinds are loaded: {loaded}"
    return done.stdout, told


def test_the_fakes_train_and_generate(fakes: Site, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc abc abc abc.\n" * 12)
    run = tmp_path / "run"
    _, told = child(RUN, "run", "squares", f"model={model}", f"data.path={text}", f"output={run}", "steps=8")
    # Two layers, eight steps; `configure` is for commands that set up a process.
    assert told["calls"]["silu_mul"] >= 16
    events = [json.loads(line) for line in (run / "notebook.jsonl").read_text().splitlines()]
    assert events[0] == ["start", 8]
    assert events[-1] == ["finish", "finished"]
    logged = {event[1]: event[2] for event in events if event[0] == "log"}
    assert list(logged) == list(range(1, 9))
    assert logged[8]["loss"] < 0.8 * logged[1]["loss"]
    assert logged[8]["probability"] > logged[1]["probability"]
    assert "fake_platform.board" in fakes.imported()

    before, after = (read_folder(folder) for folder in (model, run / "final"))
    assert set(before) == set(after)
    changed = [name for name in before if not torch.equal(before[name].load(), after[name].load().to(torch.float32))]
    assert len(changed) > 10

    _, told = child(CHECK, run / "final")
    assert told["calls"]["silu_mul"] > 0
    out, told = child(RUN, "generate", run / "final", "abc abc", "--max-tokens", "5", "--temperature", "0", "--raw")
    assert told["calls"]["configure"] == 1
    assert out.strip()


def test_the_list_shows_them_without_importing_them(fakes: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pegboard", "plugins", "list"], capture_output=True, text=True, check=True
    )
    for name in ("cork", "loops", "side-by-side", "squares", "notebook"):
        assert f" {name} " in done.stdout
    assert fakes.imported() == []
