"""`peg eval` of a toy model: log-probabilities are those of one plain forward pass, whatever the engine does with the requests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pegboard.build import build_model, open_model
from pegboard.cli import run_cli
from pegboard.plugins.load import Registry
from pegboard_engine import LLM
from pegboard_evaluate.harness import EngineModel
from pegboard_evaluate.scoring import score

CONTEXT = 96
WORDS = "what is two and three? five, the sum of them "


@pytest.fixture(scope="module")
def llm(toy_model: Path) -> Iterator[LLM]:
    with LLM(str(toy_model), platform="cpu", dtype="float32", max_model_len=CONTEXT, kv_memory="8MB") as made:
        yield made


@pytest.fixture(scope="module")
def logprobs(toy_model: Path) -> Any:
    """Return log p of every token after the first, and whether it was the most probable, in float64 without a cache."""
    registry = Registry.discover()
    built = build_model(registry, open_model(registry, str(toy_model)), platform="cpu", dtype="float64", phase="train")

    def compute(tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor(tokens)
        with torch.no_grad():
            hidden = built.model(ids, built.context([len(tokens)], torch.arange(len(tokens))))
            table = built.model.head(hidden).log_softmax(-1)[:-1]
        return table.gather(1, ids[1:, None])[:, 0], table.argmax(-1) == ids[1:]

    return compute


def test_scores_are_those_of_a_plain_forward_pass(llm: LLM, logprobs: Any) -> None:
    encode = llm.tokenizer.encode
    context = encode(WORDS * 2)
    greedy = llm.generate([context], llm.default_params(temperature=0.0, max_tokens=4))[0].outputs[0].token_ids
    continuations = [encode(" five"), [7], [9], [], greedy, greedy[:1], encode(" the sum of them"), [7]]
    pairs = [(context, continuation) for continuation in continuations]
    # One whose beginning does not fit, and one that is longer than the context itself.
    pairs += [(context * 4, encode(" five, the")), (context, context * 4)]
    told: list[int] = []
    found = score(llm, pairs, told.append)
    assert sum(told) == len(pairs)
    for (before, after), one in zip(pairs, found, strict=True):
        whole = [*before, *after][-CONTEXT:]
        count = min(len(after), CONTEXT - 1)
        values, best = logprobs(whole)
        assert one.tokens == count
        assert one.logprob == pytest.approx(float(values[len(values) - count :].sum()), rel=1e-4, abs=1e-4)
        assert one.greedy == bool(best[len(best) - count :].all())
    assert found[4].greedy and found[5].greedy and found[3].greedy


def test_perplexity_of_a_file(toy_model: Path, llm: LLM, logprobs: Any, tmp_path: Path) -> None:
    text = WORDS * 12
    (tmp_path / "text.txt").write_text(text)
    out = tmp_path / "figures.json"
    command = ["eval", str(toy_model), "--perplexity", str(tmp_path / "text.txt"), "--json", str(out)]
    options = ["--platform", "cpu", "--dtype", "float32", "--max-model-len", str(CONTEXT), "--kv-memory", "8MB"]
    assert run_cli([*command, *options, "--length", "40", "--stride", "16"]) == 0
    found = json.loads(out.read_text())["results"][str(tmp_path / "text.txt")]
    tokens = [llm.tokenizer.bos_id, *llm.tokenizer.encode(text, special=False)]
    nats, at = 0.0, 1
    while at < len(tokens):
        end = min(at + 16, len(tokens))
        values, _ = logprobs(tokens[max(end - 40, 0) : end])
        nats, at = nats - float(values[len(values) - (end - at) :].sum()), end
    assert found["tokens"] == len(tokens) - 1
    assert found["perplexity"] == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


def test_exact_answers(toy_model: Path, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = llm.tokenizer.encode("Question: what is two?\nAnswer:")
    said = llm.generate([prompt], llm.default_params(temperature=0.0, max_tokens=5))[0].outputs[0].text
    rows = [{"question": "what is two?", "answer": said}, {"question": "what is five?", "answer": "no such words"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", str(toy_model), "--exact-match", str(tmp_path / "q.jsonl"), "--max-tokens", "5", "--json"]
    options = ["--platform", "cpu", "--dtype", "float32", "--kv-memory", "8MB", "--samples", str(tmp_path / "s.jsonl")]
    capsys.readouterr()
    assert run_cli([*command, *options]) == 0
    found = json.loads(capsys.readouterr().out)["results"][str(tmp_path / "q.jsonl")]
    assert found == {"exact_match_strict": 0.5, "exact_match_flexible": 0.5, "questions": 2}
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert (samples[0]["output"], samples[0]["strict"]) == (said, True)


class Instance:
    def __init__(self, *args: Any) -> None:
        self.args = args


def test_requests_of_a_harness(llm: LLM, logprobs: Any) -> None:
    model, encode = EngineModel(llm), llm.tokenizer.encode
    # The space at the end of a context belongs to the continuation; an empty one stands after the begin marker.
    (spaced, plain, alone) = model.loglikelihood(
        [Instance("what is ", "two"), Instance("what is", " two"), Instance("", "two")]
    )
    assert spaced == plain
    values, _ = logprobs([llm.tokenizer.bos_id, *encode("two")])
    assert alone[0] == pytest.approx(float(values.sum()), rel=1e-4)
    text = WORDS * 8
    tokens = [llm.tokenizer.bos_id, *encode(text)]
    expected = 0.0
    for start in range(0, len(tokens) - 1, CONTEXT - 1):
        scored = tokens[start + 1 : start + CONTEXT]
        end = start + 1 + len(scored)
        values, _ = logprobs(tokens[max(end - CONTEXT, 0) : end])
        expected += float(values[len(values) - len(scored) :].sum())
    assert model.loglikelihood_rolling([Instance(text)])[0] == pytest.approx(expected, rel=1e-5)
    whole, cut = model.generate_until(
        [
            Instance("what is", {"until": [], "max_gen_toks": 6}),
            Instance("what is", {"until": ["e"], "max_gen_toks": 6}),
        ]
    )
    assert cut == whole.partition("e")[0]
    chat = [{"role": "user", "content": "two?"}]
    assert model.apply_chat_template(chat).endswith("<|im_start|>assistant\n")
    open_end = model.apply_chat_template(
        [*chat, {"role": "assistant", "content": "it is"}], add_generation_prompt=False
    )
    assert open_end.endswith("<|im_start|>assistant\nit is")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing is asked for"),
        (["--perplexity", "nowhere.txt"], "cannot be read"),
        (["--exact-match", "nowhere.jsonl"], "cannot be read"),
        (["--perplexity", __file__, "--json", "/nowhere/x"], "does not exist"),
        (["--perplexity", __file__, "--length", "1000"], "choose from 2 to"),
        (["--perplexity", __file__, "--length", "20", "--stride", "20"], "below the window"),
    ],
)
def test_mistakes_are_named(peg: Any, toy_model: Path, arguments: list[str], said: str) -> None:
    answer = peg("eval", toy_model, "--platform", "cpu", "--dtype", "float32", "--kv-memory", "8MB", *arguments)
    assert answer.status == 2
    assert said in answer.err
