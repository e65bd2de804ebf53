"""Options that the commands share, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pegboard.errors import ConfigError
from pegboard.garbage import uncollected

if TYPE_CHECKING:
    from pegboard_engine.llm import LLM

F = TypeVar("F", bound=Callable[..., Any])

MODEL_OPTIONS = (
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub id."),
    click.option("--dtype", default="auto", show_default=True, help="Dtype of weights and activations."),
    click.option("--platform", default="auto", show_default=True, metavar="NAME", help="A platform plugin."),
    click.option("--device", default=0, show_default=True, help="Which device of the platform."),
    click.option("--attention", default="auto", show_default=True, metavar="NAME", help="An attention plugin."),
    click.option("--quantizer", metavar="NAME", help="A plugin that holds the weights in fewer bits."),
    click.option(
        "--threads", type=click.IntRange(min=1), help="Processor threads; the platform's own choice if not given."
    ),
    click.option("--kv-memory", metavar="SIZE", help="Memory of the cache: bytes, 512MB, or a share such as 50%."),
    click.option("--max-model-len", type=int, metavar="N", help="Longest prompt and output together, in tokens."),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the engine; may be repeated."
    ),
)
SAMPLING_OPTIONS = (
    click.option("--max-tokens", type=int, metavar="N", help="Longest output, in tokens.  [default: 256]"),
    click.option("--temperature", type=float, help="0 is greedy.  [default: the model's own, else 0]"),
    click.option("--top-k", type=int, help="Keep the K most probable tokens; 0 keeps all."),
    click.option("--top-p", type=float, help="Keep the smallest set of tokens with this probability."),
    click.option("--min-p", type=float, help="Keep tokens at least this probable, relative to the most probable one."),
    click.option("--repetition-penalty", type=float, help="Above 1 makes tokens that have occurred less likely."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the output before this text; may be repeated."),
)
SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")


def model_options(function: F) -> F:
    """Add the options that say how a model is loaded."""
    for option in reversed(MODEL_OPTIONS):
        function = option(function)
    return function


def adapter_option(function: F) -> F:
    """Add the option of an adapter beside the model."""
    text = "Answer with this adapter beside the model, which is not merged into the weights."
    return click.option("--adapter", metavar="FOLDER", help=text)(function)


def sampling_options(function: F) -> F:
    """Add the options that say how tokens are chosen."""
    for option in reversed(SAMPLING_OPTIONS):
        function = option(function)
    return function


@uncollected()
def load(model: str, options: dict[str, Any]) -> LLM:
    """Load a model as `model_options` and `adapter_option` say; takes them out of `options`. The adapter's name is its folder."""
    import gc

    settings = dict(_setting(text) for text in options.pop("settings"))
    for key in ("kv_memory", "max_model_len"):
        value = options.pop(key)
        if value is not None:
            settings[key] = value
    adapter = options.pop("adapter", None)
    if adapter is not None:
        settings.setdefault("max_adapters", 1)
        settings["adapters"] = {adapter: adapter}
    threads = options.pop("threads")
    from pegboard.build import choose_platform
    from pegboard.plugins.load import Registry
    from pegboard_engine.llm import LLM

    registry = Registry.discover()
    name, platform = choose_platform(registry, options.pop("platform"))
    platform.configure(threads=threads)
    chosen = {key: options.pop(key) for key in ("revision", "dtype", "device", "attention", "quantizer")}
    llm = LLM(model, registry=registry, platform=name, **chosen, **settings)
    # What is there now stays: it need not be searched for garbage while tokens come, nor at the end. Nor now: loading leaves next to
    # none, and a search through the modules of a large mixture takes most of a second.
    gc.freeze()
    return llm


def asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return what `sampling_options` were given, checked; takes them out of `options`."""
    from pegboard.types import SamplingParams
    from pegboard_engine.sampling.params import check_params

    given = {key: value for key in SAMPLING if (value := options.pop(key)) is not None}
    given = {"max_tokens": 256, **given, "stop": tuple(given["stop"])}
    # Which ids there are is not known before the model is loaded.
    check_params(SamplingParams(**given), 2**31)
    return given


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text!r} is no setting", fix="write --set key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
