"""Options of the engine."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_HOST_TOKENS, _APART_TOKENS = 2048, 8192
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def parse_memory(value: int | float | str) -> int | float:
    """Return bytes (int) or a fraction of the available memory (float in (0, 1]).

    Accepts 536870912, 0.5, "50%", "512MB", "1GiB". Raises ValueError for anything else.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no amount of memory")
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|([KMG]i?)?B?)\s*", value)
        if not found:
            raise ValueError(f"{value!r} is no amount of memory: write bytes, a fraction, or something like 512MB")
        number = float(found[1])
        if found[2] == "%":
            value = number / 100
        elif found[2] == "" and "." in found[1]:
            value = number
        else:
            value = int(number * _UNITS[found[3] or ""])
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError(f"{value} is no fraction: it must be above 0 and at most 1 (or an integer number of bytes)")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} bytes is too little")
    return value


class EngineOptions(BaseModel):
    """Options of engine `paged`.

    page_size: tokens a page. max_num_tokens: new tokens a step, prompts and decodes together; None for what keeps the device busy, 2048
    on the host and 8192 elsewhere, or as many as there may be sequences. max_num_seqs: requests that run at
    once. max_model_len: longest prompt + output; None for the model's own limit. kv_memory: bytes, a fraction of the memory that
    weights and workspace leave, a text such as "512MB", or None: on the host room for a few full contexts of at most 512 MiB, on a
    device nine tenths of what is left.
    kv_dtype: of the cache; "auto" is the model's own, "int8" and "float8_e4m3fn" have a scale for each token and head, at a cost in
    accuracy.
    prefix_caching: whether requests share the pages of equal beginnings. policy: "fcfs", or "priority" (lower first).
    watermark: fraction of the pages that admission leaves free for those who run. look_past: how many waiting requests may overtake
    one that does not fit. max_logprobs: most log-probabilities a position. max_adapters: adapters that may be loaded at
    once, beside the model; max_adapter_rank: the highest rank of any. grammar: name of a plugin. executor: a plugin that runs the
    steps, speculator: one that guesses at the next tokens, each as a name or a mapping with "use" and its options. count_experts: whether
    the tokens of each expert of a mixture are counted, for the statistics; by executor "uniproc". rehearse: whether a device's kernels
    are made ready for the first steps while weights are read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    page_size: int = Field(default=16, ge=1, le=1024)
    max_num_tokens: int | None = Field(default=None, ge=1)
    max_num_seqs: int = Field(default=256, ge=1)
    max_model_len: int | None = Field(default=None, ge=2)
    kv_memory: int | float | str | None = None
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "float8_e4m3fn"] = "auto"
    prefix_caching: bool = True
    policy: Literal["fcfs", "priority"] = "fcfs"
    watermark: float = Field(default=0.01, ge=0, lt=1)
    look_past: int = Field(default=16, ge=0)
    max_logprobs: int = Field(default=20, ge=0)
    max_adapters: int = Field(default=4, ge=0)
    max_adapter_rank: int = Field(default=64, ge=1)
    graphs: bool = True
    executor: str | dict[str, Any] = "uniproc"
    grammar: str = "auto"
    speculator: str | dict[str, Any] | None = None
    count_experts: bool = False
    rehearse: bool = False

    @field_validator("kv_memory")
    @classmethod
    def _memory(cls, value: int | float | str | None) -> int | float | None:
        return None if value is None else parse_memory(value)

    @model_validator(mode="after")
    def _budget(self) -> EngineOptions:
        if self.max_num_tokens is not None and self.max_num_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_tokens ({self.max_num_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "every running request needs one token a step"
            )
        return self

    def tokens_a_step(self, apart: bool) -> int:
        """Return how many tokens a step may have. apart: on a device that computes apart from the host."""
        if self.max_num_tokens is not None:
            return self.max_num_tokens
        return max(_APART_TOKENS if apart else _HOST_TOKENS, self.max_num_seqs)
