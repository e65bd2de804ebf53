"""The backend's part of a config."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Options of `llguidance`: limits on what a stranger may ask to compile, and the memory of what was compiled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(default=5.0, gt=0, description="longest wait for one compilation")
    threads: int = Field(default=2, ge=1, le=64, description="compilations at once")
    cached: int = Field(default=128, ge=0, description="compiled grammars kept")
    whitespace: int = Field(
        default=64, ge=0, le=10_000, description="longest run of spaces and line breaks between the tokens of JSON"
    )
    lenient: bool = Field(
        default=False, description="ignore schema keywords that cannot be enforced instead of refusing"
    )

    max_bytes: int = Field(default=1 << 18, ge=1, description="bytes of a schema, expression, list or grammar")
    max_depth: int = Field(default=64, ge=1, le=100, description="nesting of a schema's objects and lists")
    max_objects: int = Field(default=5_000, ge=1, le=10_000, description="objects in a schema")
    max_properties: int = Field(default=450, ge=1, le=5_000, description="properties of one object in a schema")
    max_choices: int = Field(default=10_000, ge=1, description="choices, or values of the enums of a schema")
    max_pattern: int = Field(default=10_000, ge=1, description="characters of an expression or of a schema's pattern")
    max_rules: int = Field(default=1_000, ge=1, le=2_000, description="rules of a grammar; each colon counts as one")

    grammar_size: int = Field(default=500_000, ge=1, description="symbols of the compiled grammar")
    lexer_fuel: int = Field(default=1_000_000, ge=1, description="work on expressions when compiling; 50,000 take 1 ms")
    lexer_states: int = Field(
        default=50_000, ge=1, description="states of the expressions of one answer; 1 or 2 KB each"
    )
    step_fuel: int = Field(default=200_000, ge=1, description="work on expressions in a step; 14,000 take 1 ms")
    step_items: int = Field(default=50_000, ge=1, description="work on rules in a step; 20,000 take 1 ms")
