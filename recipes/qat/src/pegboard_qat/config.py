"""The configuration: that of every training run, with a quantizer that trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pegboard.config import Choice, PluginSection
from pegboard_trainer.config import TrainConfig


class QatConfig(TrainConfig):
    """A run in which weights are rounded while they learn."""

    quantizer: Annotated[Choice, PluginSection("quantizer")] = Field(
        default="int4_qat", validate_default=True, description="a quantizer that trains"
    )
    convert: bool = Field(default=True, description="write the trained model as integers, too, when the run ends")
