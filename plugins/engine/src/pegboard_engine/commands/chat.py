"""`peg chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pegboard.errors import ConfigError
from pegboard_engine.commands.generate import stream
from pegboard_engine.commands.options import adapter_option, asked, load, model_options, sampling_options

if TYPE_CHECKING:
    from pegboard.types import Message, SamplingParams
    from pegboard_engine.llm import LLM


@click.command()
@click.argument("model")
@click.option("--system", metavar="TEXT", help="A system message.")
@adapter_option
@sampling_options
@model_options
def chat(model: str, system: str | None, adapter: str | None, **options: Any) -> None:
    """Talk to MODEL: a file, a folder (of a model or an adapter) or a hub id.

    A line is a message. Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another one.
    """
    given = asked(options)
    with load(model, {**options, "adapter": adapter}) as llm:
        params = llm.default_params(**given)
        if not llm.tokenizer.has_chat_template:
            raise ConfigError(f"{model} has no chat template", fix="use `peg generate`, or a model made for chat")
        _talk(llm, params, system, adapter)


def _talk(llm: LLM, params: SamplingParams, system: str | None, adapter: str | None) -> None:
    from pegboard.types import Message

    beginning = [] if system is None else [Message("system", system)]
    messages = list(beginning)
    while (line := _read()) is not None:
        if not line.strip():
            continue
        if line.strip() == "/new":
            messages = list(beginning)
            continue
        messages.append(Message("user", line))
        answer = _answer(llm, messages, params, adapter)
        if answer is None:
            messages.pop()
        else:
            messages.append(Message("assistant", answer))


def _answer(llm: LLM, messages: list[Message], params: SamplingParams, adapter: str | None) -> str | None:
    """Return an answer, None where Ctrl-C ended it or the conversation has grown too long."""
    try:
        return stream(llm, llm.tokenizer.chat(messages), params, adapter)
    except KeyboardInterrupt:
        click.echo()
    except ConfigError as error:
        # One message too many must not end the conversation.
        click.echo(f"error: {error.message}; /new begins another conversation", err=True)
    return None


def _read() -> str | None:
    """Return the next line, None at the end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None
