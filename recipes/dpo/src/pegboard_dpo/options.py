"""Options of the objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

BETA = "how strongly the policy is held to the reference: rewards are beta times log-ratios"
SFT = "weight of the mean -log p of the chosen answer's tokens, added to each pair's loss"


class Options(BaseModel):
    """What every schema here shares: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DpoOptions(Options):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and losses of the same shape."""

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "exo", "nca", "sppo", "apo_zero", "apo_down", "discopop"] = (
        Field(default="sigmoid", description="what becomes of the two log-ratios of a pair")
    )
    beta: float = Field(default=0.1, gt=0, description=BETA)
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of pairs that are labelled the wrong way: sigmoid, robust, exo"
    )
    average: bool | None = Field(
        default=None,
        description="log-ratios per token instead of per answer; left out, it is as the loss is published: true for ipo",
    )
    sft: float = Field(default=0.0, ge=0, description=SFT + " (RPO, arXiv:2404.19733)")

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> DpoOptions:
        if self.loss == "exo" and self.label_smoothing == 0:
            raise ValueError("loss=exo needs label_smoothing above 0, such as 0.001")
        if self.label_smoothing > 0 and self.loss not in ("sigmoid", "robust", "exo"):
            raise ValueError(f"loss={self.loss} has no label_smoothing; sigmoid, robust and exo have")
        return self


class KtoOptions(Options):
    """Answers that are good or bad, without pairs (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = Field(default=0.1, gt=0, description=BETA)
    loss: Literal["kto", "apo_zero"] = Field(
        default="kto",
        description="apo_zero (arXiv:2408.06266) compares with the reference itself, not with its divergence",
    )
    desirable_weight: float = Field(default=1.0, ge=0, description="of the loss of each good answer")
    undesirable_weight: float = Field(
        default=1.0,
        ge=0,
        description="of each bad one; the authors advise (desirable_weight x good) / (undesirable_weight x bad) in 1 to 4/3",
    )


class OrpoOptions(Options):
    """Odds-ratio preference optimisation without a reference (Hong et al. 2024, arXiv:2403.07691)."""

    weight: float = Field(default=0.1, ge=0, description="λ, of the odds ratio beside the -log p of the chosen answer")


class SimpoOptions(Options):
    """Simple preference optimisation without a reference (Meng et al. 2024, arXiv:2405.14734); also CPO (arXiv:2401.08417)."""

    beta: float = Field(default=2.0, gt=0, description="scale of the log-probabilities")
    gamma: float = Field(default=1.0, ge=0, description="margin by which the chosen answer's reward is to be higher")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="share of pairs labelled the wrong way")
    average: bool = Field(
        default=True, description="log-probabilities per token; false, with gamma 0 and sft 1, is CPO"
    )
    sft: float = Field(default=0.0, ge=0, description=SFT)
