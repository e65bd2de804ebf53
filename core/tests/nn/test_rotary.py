from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from pegboard.errors import ModelError
from pegboard.nn.rotary import Rotary, rope_settings


def test_angles_and_signs() -> None:
    rotary = Rotary(4, 100.0)
    rotary.materialise(torch.device("cpu"))
    cos, sin = rotary(torch.tensor([0, 3]), torch.float64)
    assert cos.shape == sin.shape == (2, 1, 4)
    angles = [3 * 1.0, 3 * 0.1]
    torch.testing.assert_close(cos[1, 0], torch.tensor([math.cos(a) for a in angles * 2]), check_dtype=False)
    signed = [-math.sin(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(sin[1, 0], torch.tensor(signed), check_dtype=False)


@pytest.mark.parametrize(
    ("config", "theta", "scaling"),
    [
        ({}, 10000.0, {}),
        ({"rope_theta": 5e5}, 5e5, {}),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, 5e5, {"type": "linear", "factor": 2}),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6, {"rope_type": "default"}),
        ({"rope_scaling": None, "rope_theta": 7.0, "original_max_position_embeddings": 4}, 7.0, {}),
        (
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4},
            10000.0,
            {"type": "longrope", "original_max_position_embeddings": 4},
        ),
    ],
)
def test_both_styles_of_config(config: dict[str, object], theta: float, scaling: dict[str, object]) -> None:
    assert rope_settings(config) == (theta, scaling)


@pytest.mark.parametrize("theta", ["x", -1.0, float("nan"), float("inf"), True, [1]])
def test_a_base_that_is_no_positive_number_is_refused(theta: object) -> None:
    with pytest.raises(ModelError, match=r"rope_theta is .* a positive number is needed"):
        rope_settings({"rope_theta": theta})


def test_unknown_scaling_names_the_known_ones() -> None:
    with pytest.raises(ModelError, match="'mystery'") as caught:
        Rotary(4, 100.0, {"rope_type": "mystery"}, scalings={"halved": halved})
    assert "yarn" in str(caught.value.fix)
    assert "halved" in str(caught.value.fix)


def test_missing_key_is_named() -> None:
    for kind in ("linear", "halved"):
        with pytest.raises(ModelError, match=f"'{kind}' lacks the key 'factor'"):
            Rotary(4, 100.0, {"rope_type": kind}, scalings={"halved": halved})


@pytest.mark.parametrize("factor", ["much", None, 0, [2]])
def test_a_factor_that_is_no_number_is_named(factor: object) -> None:
    with pytest.raises(ModelError, match="'linear' cannot be computed from") as caught:
        Rotary(4, 100.0, {"rope_type": "linear", "factor": factor})
    assert caught.value.fix


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_settings_that_are_no_mapping_are_named(key: str) -> None:
    with pytest.raises(ModelError, match="is 3; keys and values are needed"):
        rope_settings({key: 3})


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 2.0],
    "long_factor": [4.0, 8.0],
    "original_max_position_embeddings": 16,
}


def test_longrope_turns_long_sequences_by_other_angles_from_their_first_token_on() -> None:
    rotary = Rotary(4, 100.0, LONGROPE, 64)
    rotary.materialise(torch.device("cpu"))
    assert rotary.limit == 16
    factor = math.sqrt(1 + math.log(4) / math.log(16))
    positions, extents = torch.tensor([3, 3, 15]), torch.tensor([16, 17, 16])
    cos, _ = rotary(positions, torch.float64, extents)
    angles = torch.tensor([[3.0, 0.15], [0.75, 0.0375], [15.0, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(cos[:, 0, :2], angles.cos() * factor, atol=1e-6, rtol=0)
    # Nobody says how long sequences are: the batch's greatest position does.
    for last, wanted in ((15, angles[0]), (16, angles[1])):
        cos, _ = rotary(torch.tensor([3, last]), torch.float64)
        torch.testing.assert_close(cos[0, 0, :2], wanted.cos() * factor, atol=1e-6, rtol=0)
    assert rotary(torch.empty(0, dtype=torch.int64), torch.float64)[0].shape == (0, 1, 4)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"factor": 16.0}, math.sqrt(2)),
        ({"original_max_position_embeddings": 64}, 1.0),
    ],
)
def test_longrope_scale(changes: dict[str, object], factor: float) -> None:
    assert Rotary(4, 100.0, {**LONGROPE, **changes}, 64).factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_factor": [1.0]}, "short_factor must be 2 positive numbers"),
        ({"long_factor": [1.0, 0.0]}, "long_factor must be 2 positive numbers"),
        ({"long_factor": 3}, "cannot be computed"),
    ],
)
def test_longrope_factors_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Rotary(4, 100.0, {**LONGROPE, **changes}, 64)
    with pytest.raises(ModelError, match="lacks the key 'long_factor'"):
        Rotary(4, 100.0, {key: value for key, value in LONGROPE.items() if key != "long_factor"}, 64)


def halved(base: list[float], scaling: Mapping[str, Any]) -> list[float]:
    return [f / 2 / scaling["factor"] for f in base]


def test_a_familys_own_scaling() -> None:
    rotary = Rotary(4, 100.0, {"rope_type": "halved", "factor": 2.0}, scalings={"halved": halved})
    rotary.materialise(torch.device("cpu"))
    torch.testing.assert_close(rotary.inv_freq, torch.tensor([0.25, 0.025]))


def test_a_table_gives_what_is_computed() -> None:
    rotary = Rotary(8, 100.0)
    rotary.materialise(torch.device("cpu"))
    positions = torch.tensor([5, 0, 11])
    wanted = rotary(positions, torch.bfloat16)
    rotary.tabulate(12, torch.bfloat16)
    rotary.tabulate(4, torch.bfloat16)  # the longer one stays
    calls: list[int] = []
    rotary.register_forward_hook(lambda *_: calls.append(1))
    for got, right in zip(rotary.look_up(positions, torch.bfloat16), wanted, strict=True):
        assert torch.equal(got, right)
    assert not calls
    rotary.look_up(positions, torch.float32)
    assert calls  # of another dtype: computed
