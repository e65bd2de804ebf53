"""A draft model beside the model: the tokens stay, the steps become fewer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import ConfigError
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import LLM
from pegboard_engine.draft import DraftOptions, DraftSpeculator

SETTINGS: dict[str, Any] = {"dtype": "float32", "page_size": 4, "max_model_len": 96}


def prompts(count: int = 5) -> list[list[int]]:
    source = random.Random(2)
    return [[source.randrange(1, 260) for _ in range(length)] for length in (3, 17, 40, 1, 9)[:count]]


def outputs(folder: Path, params: SamplingParams, **options: Any) -> tuple[list[list[int]], Any]:
    with LLM(str(folder), **SETTINGS, **options) as llm:
        found = [one.outputs[0].token_ids for one in llm.generate(prompts(), params)]
        return found, llm.engine.stats()


@pytest.mark.parametrize(
    "draft",
    [{}, {"most": 1}, {"max_num_seqs": 2}, {"kv_tokens": 96}, {"max_num_tokens": 7}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_tokens_stay_and_the_steps_become_fewer(folder: Path, draft: dict[str, int], temperature: float) -> None:
    params = SamplingParams(max_tokens=24, temperature=temperature, seed=4, ignore_eos=True)
    plain, before = outputs(folder, params)
    speculator = {"use": "draft", "model": str(folder), "dtype": "float32", **draft}
    found, after = outputs(folder, params, speculator=speculator)
    assert found == plain
    assert after.steps <= before.steps
    assert after.output_tokens == before.output_tokens == 120
    assert 0 < after.accepted <= after.proposed
    if temperature == 0:
        # The draft is the model itself here, so that it is always right.
        assert after.accepted == after.proposed
        assert after.steps < before.steps


def test_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    from pegboard_sdk.toys.model import random_model

    built = random_model(phase="decode")
    speculator = DraftSpeculator(DraftOptions(model=str(folder)))
    object.__setattr__(built, "platform_name", "cpu")
    with pytest.raises(ConfigError, match=r"draft model .* has 270 ids, the model 260"):
        speculator.load(built, None, Registry.discover())
