"""From the command's options to what is run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import aiohttp

from pegboard.errors import ConfigError, nearest
from pegboard_bench.arrivals import arrivals, read_objectives, read_rates
from pegboard_bench.client import Endpoint, Target
from pegboard_bench.load import Extent
from pegboard_bench.prompts import Prompt, cycled, drawn, named, read_file, read_range
from pegboard_engine.workloads import WORKLOADS

REQUESTS = 100
SPREAD = 1000
"""Seeds between one run and the next, so that no workload's requests come twice."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep. file: its prompts where they come from one. told: what the report repeats."""

    target: Target
    rates: list[float]
    burstiness: float
    extent: Extent
    concurrency: int | None
    objectives: Mapping[str, float]
    workload: str
    file: list[Prompt] | None
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    num_warmup: int
    seed: int

    @property
    def told(self) -> dict[str, Any]:
        """What is worth writing beside the figures."""
        told: dict[str, Any] = {"workload": self.workload, "seed": self.seed}
        told["burstiness"] = "inf" if math.isinf(self.burstiness) else self.burstiness
        return told | {"ignore_eos": self.target.ignore_eos}

    def prompts(self, run: int) -> Iterator[Prompt]:
        """Return the requests of a run, without end."""
        seed = self.seed + SPREAD * run
        if self.file is not None:
            return cycled(self.file, seed)
        if self.workload == "random":
            return drawn(seed, self.inputs, self.outputs, text=self.target.endpoint == "chat")
        return named(self.workload, seed)

    def times(self, run: int) -> Iterator[float]:
        """Return when the requests of a run are sent."""
        return arrivals(self.rates[run], self.burstiness, self.seed + SPREAD * run)

    def warmup(self) -> Iterator[Prompt]:
        """Return the requests that do not count; those of no run."""
        return islice(self.prompts(len(self.rates)), self.num_warmup)


def make_plan(url: str, **given: Any) -> Plan:
    """Return the plan that the options of `peg bench serve` ask for. Raises ConfigError, DataError."""
    rates = read_rates(given["rate"])
    seconds, requests, concurrency = given["duration"], given["requests"], given["max_concurrency"]
    if seconds is None and requests is None:
        requests = REQUESTS
    if requests is None and concurrency is None and any(map(math.isinf, rates)):
        raise ConfigError("an infinite rate for a duration has no end", fix="give --requests or --max-concurrency")
    workload, file = given["workload"], None
    outputs = read_range("--output-tokens", given["output_tokens"])
    if given["prompts"] is not None:
        workload, file = given["prompts"], read_file(given["prompts"], outputs[1])
    elif workload != "random" and workload not in WORKLOADS:
        known = ("random", *sorted(WORKLOADS))
        raise ConfigError(
            f"there is no workload {workload!r}{nearest(workload, known)}", fix=f"one of {', '.join(known)}"
        )
    plan = Plan(
        _target(url, _endpoint(given["endpoint"], file), given),
        rates,
        _burstiness(given["burstiness"]),
        Extent(requests, seconds),
        concurrency,
        read_objectives(given["goodput"]),
        workload,
        file,
        read_range("--input-tokens", given["input_tokens"]),
        outputs,
        given["warmup"],
        given["seed"],
    )
    for prompt in file if file is not None else islice(plan.prompts(0), 1):
        plan.target.body(prompt)
    return plan


async def resolve_target(session: aiohttp.ClientSession, target: Target) -> Target:
    """Return the target with a model's name, asked of the server where none is given. Raises ConfigError."""
    if target.model:
        return target
    try:
        async with session.get(f"{target.url}/v1/models") as response:
            if response.status != 200:
                raise ConfigError(
                    f"{target.url}/v1/models answers {response.status}",
                    fix="give --model, and --api-key where one is needed",
                )
            listed = await response.json(content_type=None)
            return replace(target, model=str(listed["data"][0]["id"]))
    except (aiohttp.ClientError, OSError) as error:
        raise ConfigError(
            f"{target.url} cannot be reached: {error}", fix="start the server, or correct the URL"
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"{target.url}/v1/models names no model", fix="give --model") from error


def _endpoint(choice: str, file: list[Prompt] | None) -> Endpoint:
    if choice == "chat" or choice == "completions":
        return choice  # type: ignore[return-value]
    chats = any(isinstance(p.content, list) and isinstance(p.content[0], dict) for p in file or ())
    return "chat" if chats else "completions"


def _target(url: str, endpoint: Endpoint, given: Mapping[str, Any]) -> Target:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url!r} is no URL of a server", fix="give one such as http://127.0.0.1:8000")
    headers = {"authorization": f"Bearer {given['api_key']}"} if given["api_key"] else {}
    for text in given["headers"]:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"--header {text!r} is no header", fix="write --header NAME:VALUE")
        headers[name.strip()] = value.strip()
    return Target(
        url.rstrip("/").removesuffix("/v1"),
        endpoint,
        given["model"] or "",
        timeout=given["timeout"],
        headers=headers,
        extra=_body(given["body"]),
        ignore_eos=given["ignore_eos"],
        verify=not given["insecure"],
    )


def _body(text: str | None) -> dict[str, Any]:
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--body is no JSON: {error}", fix='write an object, such as {"temperature": 1}') from error
    if not isinstance(body, dict):
        raise ConfigError(f"--body is {text}", fix='write an object, such as {"temperature": 1}')
    return body


def _burstiness(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(
            f"--burstiness {text!r} is no shape", fix="give a number above 0: 1 for Poisson, inf for even gaps"
        )
    return value
