"""Beam search against all sequences there are, and against transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pegboard.errors import ConfigError
from pegboard_engine.sampling.beam import Beam, BeamOptions, beam_search

VOCAB = 5


def row(sequence: Sequence[int]) -> np.ndarray:
    """Return log-probabilities after a sequence, in double precision."""
    generator = np.random.default_rng([token + 1 for token in sequence])
    values = generator.standard_normal(VOCAB) * 1.5
    return values - math.log(np.exp(values).sum())


def model(sequences: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
    tops = []
    for sequence in sequences:
        values = row(sequence)
        tops.append([(int(token), float(values[token])) for token in np.argsort(-values)[:count]])
    return tops


def everything(
    prompt: Sequence[int], length: int, ends: set[int], penalty: float
) -> list[tuple[float, tuple[int, ...]]]:
    """Return (score, output) of all outputs that end, or are that long, best first."""
    found = []
    for size in range(1, length + 1):
        for output in itertools.product(range(VOCAB), repeat=size):
            if any(token in ends for token in output[:-1]) or (size < length and output[-1] not in ends):
                continue
            logprob = sum(row([*prompt, *output[:i]])[token] for i, token in enumerate(output))
            found.append((logprob / size**penalty, output))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("ends", [set(), {0}, {1, 3}], ids=str)
def test_a_beam_that_is_wide_enough_finds_the_best_of_all(ends: set[int], penalty: float) -> None:
    options = BeamOptions(VOCAB**4, 4, ends, penalty, "never")
    for prompt in ([1], [2, 0]):
        (found,) = beam_search(model, [prompt], options)
        best = everything(prompt, 4, ends, penalty)
        assert [beam.token_ids for beam in found[:5]] == [output for _, output in best[:5]]
        assert [beam.score for beam in found[:5]] == pytest.approx([score for score, _ in best[:5]])


def test_one_beam_is_greedy() -> None:
    (found,) = beam_search(model, [[3]], BeamOptions(1, 6))
    sequence = [3]
    for _ in range(6):
        sequence.append(int(row(sequence).argmax()))
    assert found == [Beam(tuple(sequence[1:]), found[0].logprob, found[0].logprob / 6, "length")]


def test_answers_tell_how_they_ended() -> None:
    (found,) = beam_search(model, [[3]], BeamOptions(4, 5, {2}))
    assert len(found) == 4
    assert [beam.score for beam in found] == sorted((beam.score for beam in found), reverse=True)
    for beam in found:
        assert (beam.token_ids[-1] == 2) == (beam.finish_reason == "stop")
        assert 2 not in beam.token_ids[:-1] and len(beam.token_ids) <= 5
        assert beam.score == beam.logprob / len(beam.token_ids)


def test_prompts_side_by_side_are_as_alone_and_share_calls() -> None:
    options, calls = BeamOptions(3, 5, {1}), []

    def counted(sequences: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
        calls.append((len(sequences), count))
        return model(sequences, count)

    together = beam_search(counted, [[1], [2], [3, 4]], options)
    assert together == [beam_search(model, [prompt], options)[0] for prompt in ([1], [2], [3, 4])]
    assert len(calls) <= 5 and calls[0] == (3, 6)


def test_early_stopping_ends_sooner() -> None:
    """The fewest calls when the first answers are enough, the most when any length might still win."""
    calls = []
    for early in (True, False, "never"):
        seen: list[int] = []

        def counted(sequences: Sequence[Sequence[int]], count: int, seen: list[int] = seen) -> Any:
            seen.append(len(sequences))
            return model(sequences, count)

        beam_search(counted, [[i] for i in range(5)], BeamOptions(2, 30, {0}, early_stopping=early))
        calls.append(sum(seen))
    assert calls == sorted(calls) and calls[0] < calls[2]


def test_an_end_below_the_best_candidates_is_no_answer() -> None:
    """With two beams an end that is third makes none, though four candidates are looked at; with three it does."""

    def told(sequences: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
        return [[(1, -1.0), (2, -1.5), (4, -2.0), (3, -3.0)] for _ in sequences]

    (found,) = beam_search(told, [[0]], BeamOptions(2, 2, {4}, length_penalty=0.0))
    assert [(beam.token_ids, beam.finish_reason) for beam in found] == [((1, 1), "length"), ((1, 2), "length")]
    (found,) = beam_search(told, [[0]], BeamOptions(3, 1, {4}))
    assert [(beam.token_ids, beam.finish_reason) for beam in found] == [
        ((1,), "length"),
        ((2,), "length"),
        ((4,), "stop"),
    ]


def test_a_dead_end_is_no_candidate() -> None:
    """Ids of probability zero do not come, and where all that is left ends the search ends."""

    def only_ends(sequences: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
        return [[(4, 0.0), (1, -math.inf), (2, -math.inf)] for _ in sequences]

    assert beam_search(only_ends, [[1]], BeamOptions(3, 9, {4})) == [[Beam((4,), 0.0, 0.0, "stop")]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_beams": 0},
        {"max_tokens": 0},
        {"num_beams": 1.5},
        {"length_penalty": math.nan},
        {"length_penalty": "long"},
        {"early_stopping": "always"},
    ],
    ids=str,
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        BeamOptions(**{"num_beams": 2, "max_tokens": 3, **wrong})


@pytest.mark.peers
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("ends", [[2], [2, 7]], ids=str)
def test_as_transformers(early_stopping: Any, length_penalty: float, ends: list[int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    peer = LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=1.0, **shape)).double().eval()
    peer.lm_head.weight.data *= 0.3

    @torch.inference_mode()
    def mine(sequences: Sequence[Sequence[int]], count: int) -> list[list[tuple[int, float]]]:
        tops = []
        for sequence in sequences:
            logits = peer(torch.tensor([sequence])).logits[0, -1].float()
            top = logits.log_softmax(0).topk(min(count, 20))
            tops.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
        return tops

    for width in (2, 4):
        for prompt in ([3, 5], [9, 1, 4]):
            out = peer.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=10,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=0,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                return_dict_in_generate=True,
                output_scores=True,
            )
            options = BeamOptions(width, 10, set(ends), length_penalty, early_stopping)
            (found,) = beam_search(mine, [prompt], options)
            assert [beam.score for beam in found] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)
            for beam, sequence in zip(found, out.sequences.tolist(), strict=True):
                assert list(beam.token_ids) == sequence[len(prompt) : len(prompt) + len(beam.token_ids)]
