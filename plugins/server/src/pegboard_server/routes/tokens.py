"""/tokenize, /detokenize, /tokenizer_info"""

from __future__ import annotations

import json

from fastapi import APIRouter, Request

from pegboard_server import chat, limits
from pegboard_server.errors import bad_request
from pegboard_server.prompts import prompt_ids
from pegboard_server.schemas.tokens import DetokenizeRequest, Text, TokenizeRequest, TokenizerInfo, Tokens
from pegboard_server.served import Served, ServedDep
from pegboard_server.sse import while_connected

router = APIRouter()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request, served: ServedDep) -> Tokens:
    """Return the ids of a text, or of a conversation."""
    served.check_fields(body)
    served.adapter(body.model)
    ids = await while_connected(request, _ids(served, body))
    texts = [served.tokenizer.decode([i], skip_special=False) for i in ids] if body.return_token_strs else None
    return Tokens(count=len(ids), max_model_len=served.max_model_len, tokens=ids, token_strs=texts)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, served: ServedDep) -> Text:
    """Return the text of ids."""
    served.check_fields(body)
    served.adapter(body.model)
    if body.tokens:
        await prompt_ids(served, [body.tokens], "tokens")
    return Text(prompt=(await served.renderer.decode_all([body.tokens]))[0])


@router.get("/tokenizer_info")
async def tokenizer_info(served: ServedDep) -> TokenizerInfo:
    """Return the markers and the chat template, for clients that cut texts into tokens by asking this server."""
    tokenizer = served.tokenizer
    files = tokenizer.files()
    template = files.get("chat_template.jinja", b"").decode("utf-8", "replace")
    if not template:
        template = json.loads(files.get("tokenizer_config.json", b"{}")).get("chat_template")
    ids = (tokenizer.bos_id, next(iter(tokenizer.eos_ids), None), tokenizer.pad_id)
    bos, eos, pad = (None if token is None else tokenizer.decode([token], skip_special=False) for token in ids)
    return TokenizerInfo(
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template if isinstance(template, str) else None,
        vocab_size=served.vocab_size,
        model_max_length=served.max_model_len,
    )


async def _ids(served: Served, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (not body.messages):
        raise bad_request("prompt: give a text, or `messages`", "prompt")
    if body.prompt is not None:
        return await served.renderer.encode(body.prompt, special=body.add_special_tokens)
    limits.check_tools(body.tools or [], served.options.limits)
    return await chat.prompt_ids(
        served,
        body.messages or [],
        body.tools,
        generation_prompt=body.add_generation_prompt,
        variables=body.chat_template_kwargs,
    )
