"""`peg generate`: answers to prompts."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from pegboard.errors import ConfigError, PegboardError
from pegboard.interfaces.engine import RequestOptions
from pegboard_engine.commands.options import adapter_option, asked, load, model_options, sampling_options

if TYPE_CHECKING:
    from pegboard.types import SamplingParams
    from pegboard_engine.llm import LLM


@click.command()
@click.argument("model")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option(
    "--chat/--raw",
    "chat",
    default=None,
    help="With the model's chat template, or as it is.  [default: chat if there is one]",
)
@click.option("--system", metavar="TEXT", help="A system message; chat only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a prompt.")
@adapter_option
@sampling_options
@model_options
def generate(
    model: str,
    prompts: tuple[str, ...],
    chat: bool | None,
    system: str | None,
    as_json: bool,
    adapter: str | None,
    **options: Any,
) -> None:
    """Generate an answer to each PROMPT with MODEL: a file, a folder (of a model or an adapter) or a hub id.

    One prompt is streamed; several are answered together. The prompt - is read from standard input.
    """
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    given = asked(options)
    with load(model, {**options, "adapter": adapter}) as llm:
        params = llm.default_params(**given)
        if chat and not llm.tokenizer.has_chat_template:
            raise ConfigError(f"{model} has no chat template", fix="leave --chat out, or use --raw")
        chat = llm.tokenizer.has_chat_template if chat is None else chat
        if system is not None and not chat:
            raise ConfigError("--system needs a chat template", fix="put it into the prompt, or leave --raw out")
        tokens = [_tokens(llm, text, system) if chat else llm.tokenizer.encode(text) for text in texts]
        if len(tokens) == 1 and not as_json:
            stream(llm, tokens[0], params, adapter)
            return
        failed = 0
        for text, generation in zip(texts, llm.generate(tokens, params, RequestOptions(adapter=adapter)), strict=True):
            (answer,) = generation.outputs
            failed += answer.finish_reason == "error"
            if as_json:
                row = {"prompt": text, "text": answer.text, "finish_reason": answer.finish_reason}
                row |= {"num_prompt_tokens": len(generation.prompt_token_ids), "token_ids": answer.token_ids}
                click.echo(json.dumps(row | ({"error": answer.error} if answer.error else {}), ensure_ascii=False))
            else:
                click.echo(f"> {text}\n{answer.text}\n" + (f"error: {answer.error}\n" if answer.error else ""))
        if failed:
            raise PegboardError(f"{failed} of {len(texts)} requests failed", fix="the reasons stand with them")


def stream(llm: LLM, tokens: list[int], params: SamplingParams, adapter: str | None = None) -> str:
    """Write an answer to standard output as it comes, and its speed to a terminal's standard error; return its text.

    Raises PegboardError when the request fails.
    """
    began, first, text, last = time.perf_counter(), 0.0, "", None
    for last in llm.stream(tokens, params, RequestOptions(adapter=adapter)):
        first = first or time.perf_counter()
        text += last.text
        click.echo(last.text, nl=False)
        sys.stdout.flush()
    click.echo()
    if last is not None and last.finish_reason == "error":
        raise PegboardError(last.error or "the request failed", fix="look at the log above")
    if sys.stderr.isatty() and last is not None:
        now, count = time.perf_counter(), last.num_output_tokens
        rate = f", {(count - 1) / (now - first):.1f} tokens/s" if count > 1 else ""
        click.echo(f"[{last.num_prompt_tokens} + {count} tokens, first after {first - began:.2f} s{rate}]", err=True)
    return text


def _tokens(llm: LLM, text: str, system: str | None) -> list[int]:
    from pegboard.types import Message

    before = [] if system is None else [Message("system", system)]
    return llm.tokenizer.chat([*before, Message("user", text)])
