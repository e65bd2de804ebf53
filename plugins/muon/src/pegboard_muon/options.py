from __future__ import annotations

from pydantic import Field

from pegboard_trainer.options import AdamWOptions, Decay


class MuonOptions(AdamWOptions):
    """Muon (Jordan et al. 2024) for the matrices of the layers; `betas`, `eps` and `states` are those of AdamW for everything else.

    Updates have the root mean square that AdamW's usually have (arXiv:2502.16982), so that one `lr` serves both.
    """

    momentum: Decay = Field(default=0.95, description="decay of the gradients' average")
    nesterov: bool = Field(default=True, description="the average looks one gradient ahead")
    iterations: int = Field(default=5, ge=1, description="Newton-Schulz steps towards an orthogonal matrix")
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices; vectors are never decayed")

    def plain(self) -> AdamWOptions:
        """Return the options of what is updated by AdamW."""
        own = {"momentum", "nesterov", "iterations"}
        return AdamWOptions(**self.model_dump(exclude=own))
