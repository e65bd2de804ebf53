"""/v1/chat/completions against the engine `echo`."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

URL = "/v1/chat/completions"


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_a_whole_answer(client: TestClient) -> None:
    answer = client.post(URL, json=user("say:hello", model="echo")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "echo"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    usage = answer["usage"]
    prompt = len("user\nsay:hello") + 2 + 1 + len("assistant\n")
    assert usage == {
        "prompt_tokens": prompt,
        "completion_tokens": 6,
        "total_tokens": prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
