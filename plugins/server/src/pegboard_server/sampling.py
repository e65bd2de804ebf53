"""From the fields of a request to sampling parameters and options of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pegboard.interfaces.engine import RequestOptions
from pegboard.types import GrammarSpec, SamplingParams
from pegboard_server import limits
from pegboard_server.errors import bad_request
from pegboard_server.schemas.base import JsonObjectFormat, ResponseFormat, Sampling, SchemaFormat, StructuredOutputs
from pegboard_server.served import Served

OWN = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
"""Fields whose value, when a request leaves them out, is the model's own (generation_config.json)."""


def sampling(
    served: Served,
    body: Sampling,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: GrammarSpec | None = None,
) -> SamplingParams:
    """Return how the answers to one prompt are sampled; `limits.check_sampling` has passed the fields."""
    own = {
        name: value
        for name in OWN
        if isinstance(value := served.defaults.get(name), (int, float)) and not isinstance(value, bool)
    }
    values: dict[str, Any] = {"temperature": 1.0, **own}
    for name in OWN:
        if (value := getattr(body, name)) is not None:
            values[name] = value
    values["top_k"] = max(int(values.get("top_k", 0)), 0)  # -1 is another spelling of off
    if values.get("top_p") == 0:
        values["top_p"], values["top_k"] = 1.0, 1  # the smallest nucleus is the most probable token
    return SamplingParams(
        **values,
        max_tokens=max_tokens,
        min_tokens=min(body.min_tokens or 0, max_tokens),
        n=body.n or 1,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(key): value for key, value in (body.logit_bias or {}).items()},
        seed=None if body.seed is None else body.seed % 2**63,
        stop=_stop(body),
        stop_ids=tuple(body.stop_token_ids or ()),
        include_stop=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        skip_special=body.skip_special_tokens is not False,
        allowed_ids=None if body.allowed_token_ids is None else tuple(body.allowed_token_ids),
        bad_words=tuple(body.bad_words or ()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
    )


def options(served: Served, body: Sampling) -> RequestOptions:
    """Return what a request is beside its sampling. Raises ApiError for a model that is not served."""
    return RequestOptions(
        priority=body.priority or 0,
        deadline=served.options.deadline,
        queue_timeout=served.options.queue_timeout,
        adapter=served.adapter(body.model),
        salt=body.cache_salt or "",
    )


def grammar(served: Served, body: Sampling, response_format: ResponseFormat | None) -> GrammarSpec | None:
    """Return what an answer must match, None for anything. Raises ApiError for two at once, and beyond the limits."""
    found = [*_of_format(response_format), *_of_outputs(body.structured_outputs), *_guided(body)]
    if len(found) > 1:
        raise bad_request("an answer can be made to match one thing only", "structured_outputs")
    if not found:
        return None
    limits.check_grammar(found[0], served.options.limits)
    return found[0]


def _of_format(response_format: ResponseFormat | None) -> list[GrammarSpec]:
    if isinstance(response_format, JsonObjectFormat):
        return [GrammarSpec("json_object")]
    if isinstance(response_format, SchemaFormat):
        schema = response_format.json_schema.schema_
        return [GrammarSpec("json_schema", json.dumps(schema)) if schema is not None else GrammarSpec("json_object")]
    return []


def _of_outputs(outputs: StructuredOutputs | None) -> list[GrammarSpec]:
    if outputs is None:
        return []
    found = _specs(outputs.json_, outputs.regex, outputs.choice, outputs.grammar)
    return [*found, GrammarSpec("json_object")] if outputs.json_object else found


def _guided(body: Sampling) -> list[GrammarSpec]:
    return _specs(body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)


def _specs(
    schema: str | Mapping[str, Any] | None, regex: str | None, choice: list[str] | None, ebnf: str | None
) -> list[GrammarSpec]:
    found = []
    if schema is not None:
        found.append(GrammarSpec("json_schema", schema if isinstance(schema, str) else json.dumps(schema)))
    if regex is not None:
        found.append(GrammarSpec("regex", regex))
    if choice is not None:
        found.append(GrammarSpec("choice", json.dumps(choice)))
    if ebnf is not None:
        found.append(GrammarSpec("ebnf", ebnf))
    return found


def _stop(body: Sampling) -> tuple[str, ...]:
    if body.stop is None:
        return ()
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
