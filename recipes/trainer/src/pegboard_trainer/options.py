"""Options of the optimizer and the schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Decay = Annotated[float, Field(ge=0, lt=1)]


class Options(BaseModel):
    """What every schema here shares: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdamWOptions(Options):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    lr: float = Field(gt=0, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="decay of the first and second moment")
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(
        default=0.01, ge=0, description="of matrices; vectors (norms, biases) are never decayed"
    )
    rounding: Literal["master", "stochastic", "nearest"] = Field(
        default="master",
        description="for 16-bit weights: keep a float32 copy, round at random in proportion, or lose small updates; "
        "float32 weights need none of them",
    )
    states: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="the two moments; in bfloat16 they take half the memory and are rounded at random",
    )
    offload: bool = Field(
        default=False, description="moments and master weights are kept on the host, which takes the steps"
    )
    seed: int = Field(default=0, description="of stochastic rounding")


class ConstantOptions(Options):
    """The peak rate after a warm-up."""

    warmup: float = Field(
        default=0.0, ge=0, description="steps of linear warm-up; a value below 1 is a share of all steps"
    )


class DecayOptions(ConstantOptions):
    """A rate that falls from its peak until the last step."""

    minimum: float = Field(default=0.0, ge=0, le=1, description="factor that the end of the run approaches")


class WsdOptions(DecayOptions):
    """Warm-up, a stable phase, and a linear decay at the end (arXiv:2404.06395)."""

    decay: float = Field(
        default=0.1, ge=0, description="steps of decay at the end; a value below 1 is a share of all steps"
    )
