from __future__ import annotations

from typing import Literal

from pydantic import Field

from pegboard_trainer.options import AdamWOptions, Decay, Options


class Adam8bitOptions(Options):
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022, arXiv:2110.02861). Keys that `adamw` has, too, mean the same."""

    lr: float = Field(gt=0, description="peak learning rate")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="decay of the first and second moment")
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices; vectors are never decayed")
    rounding: Literal["master", "stochastic", "nearest"] = Field(default="master", description="of 16-bit weights")
    seed: int = Field(default=0, description="of stochastic rounding")
    block: int = Field(default=256, ge=16, description="moments that share a scale")
    smallest: int = Field(
        default=4096, ge=0, description="parameters of fewer values, norms and biases, keep moments in full precision"
    )

    def plain(self) -> AdamWOptions:
        """Return the options of the update itself."""
        return AdamWOptions(**self.model_dump(exclude={"block", "smallest"}))
