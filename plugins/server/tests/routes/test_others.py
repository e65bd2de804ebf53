"""Embeddings, scores, tokens, models, health, metrics and pages."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient


def test_embeddings(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["ab", "c"], "model": "echo"}).json()
    raw = [256 + 97 + 98.0, 3.0, 1.0]
    length = math.sqrt(sum(x * x for x in raw))
    assert answer["data"][0]["embedding"] == pytest.approx([x / length for x in raw])
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 5


def test_embeddings_of_ids_in_base64_and_cut(client: TestClient) -> None:
    body = {"input": [[3, 4]], "encoding_format": "base64", "dimensions": 2}
    text = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    values = struct.unpack("<2f", base64.b64decode(text))
    assert values == pytest.approx((7 / math.hypot(7, 2), 2 / math.hypot(7, 2)))
    assert client.post("/v1/embeddings", json={**body, "dimensions": 4}).json()["error"]["param"] == "dimensions"
    assert client.post("/v1/embeddings", json={"input": []}).status_code == 400


def test_scores(open_client: Callable[..., TestClient]) -> None:
    client = open_client(score_labels=("y", "n"))
    answer = client.post("/score", json={"query": "q", "documents": ["one", "two"]}).json()
    yes, no = -(ord("y") % 10 + 1) / 10, -(ord("n") % 10 + 1) / 10
    expected = math.exp(yes) / (math.exp(yes) + math.exp(no))
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([expected] * 2)
    _, ids, params, _ = client.served.loop._engine.seen[-1]  # type: ignore[attr-defined]
    words = bytes(i for i in ids if i < 256).decode()
    assert "Query: q" in words
    assert "Document: two" in words
    assert params.max_tokens == 1
    assert params.logprob_ids == (ord("y"), ord("n"))


def test_scores_with_a_template_and_vllm_s_names(open_client: Callable[..., TestClient]) -> None:
    client = open_client(score_template="{document}|{query}", score_labels=("y", "n"))
    client.post("/score", json={"text_1": ["{document}", "b"], "text_2": ["c", "d"]})
    prompts = [bytes(i for i in ids if i < 256).decode() for _, ids, _, _ in client.served.loop._engine.seen]  # type: ignore[attr-defined]
    assert prompts == ["c|{document}", "d|b"]
    assert client.post("/score", json={"query": ["a", "b", "c"], "documents": ["d", "e"]}).status_code == 400


def test_labels_that_begin_alike(open_client: Callable[..., TestClient]) -> None:
    client = open_client(score_labels=("yes", "yeah"))
    assert "same token" in client.post("/score", json={"query": "a", "documents": "b"}).json()["error"]["message"]


def test_tokenize_and_back(client: TestClient) -> None:
    answer = client.post("/tokenize", json={"prompt": "aé", "return_token_strs": True}).json()
    assert answer["tokens"] == [256, 97, 195, 169]
    assert answer["count"] == 4
    assert answer["max_model_len"] == 256
    assert answer["token_strs"][:2] == ["<bos>", "a"]
    assert client.post("/tokenize", json={"prompt": "a", "add_special_tokens": False}).json()["tokens"] == [97]
    assert client.post("/detokenize", json={"tokens": [97, 195, 169]}).json() == {"prompt": "aé"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert client.post("/detokenize", json={"tokens": [999]}).status_code == 400
    assert client.post("/tokenize", json={}).status_code == 400


def test_what_a_client_without_a_tokenizer_must_know(client: TestClient) -> None:
    told = client.get("/tokenizer_info").json()
    assert (told["bos_token"], told["eos_token"], told["pad_token"]) == ("<bos>", "<eos>", "<pad>")
    assert (told["chat_template"], told["vocab_size"]) == (None, 260)


def test_a_conversation_is_tokenized_as_chat_would(client: TestClient) -> None:
    messages = [{"role": "user", "content": "say:a"}]
    tokens = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    client.post("/v1/chat/completions", json={"messages": messages})
    assert tokens == client.served.loop._engine.seen[-1][1]  # type: ignore[attr-defined]


def test_models(client: TestClient) -> None:
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["echo", "other"]
    assert client.get("/v1/models/other").json()["max_model_len"] == 256
    assert client.get("/v1/models/third").json()["error"]["code"] == "model_not_found"


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 503
    client.served.ready = True  # type: ignore[attr-defined]
    assert client.get("/ready").json() == {"status": "ready"}
    client.served.draining = True  # type: ignore[attr-defined]
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    refused = client.post("/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 503
    assert refused.headers["retry-after"]


def test_metrics_are_read_by_prometheus(client: TestClient) -> None:
    client.post("/v1/completions", json={"prompt": "say:abc"})
    client.post("/v1/completions", json={"prompt": "!fail"})
    client.post("/v1/completions", json={"prompt": "!late"})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in text_string_to_metric_families(response.text)}

    def value(name: str, **labels: str) -> float:
        family = found[name.removesuffix("_total").removesuffix("_count").removesuffix("_sum").removesuffix("_bucket")]
        return next(s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items())

    assert value("pegboard_time_to_first_token_seconds_count") == 1
    assert value("pegboard_inter_token_latency_seconds_count") == 3
    assert value("pegboard_request_seconds_count") == 3
    assert value("pegboard_queue_seconds_count") == 1
    assert value("pegboard_requests_finished_total", reason="stop") == 1
    assert value("pegboard_requests_aborted_total", cause="deadline") == 1
    assert value("pegboard_requests_aborted_total", cause="error") == 1
    assert value("pegboard_http_responses_total", route="/v1/completions", status="200") == 1
    assert value("pegboard_preemptions_total") == 2
    assert value("pegboard_prefix_hit_ratio") == 0.4
    buckets = [s.value for s in found["pegboard_request_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)


class Links(HTMLParser):
    """What a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [v for v in (values.get("src"), values.get("href")) if v]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    page = client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    links = Links()
    links.feed(page.text)
    assert links.found
    for link in links.found:
        assert not link.startswith(("http", "//"))
        assert client.get("/" + link.removeprefix("./")).status_code == 200
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert client.head(path).status_code == 200


def test_openapi_names_every_route_and_its_errors(client: TestClient) -> None:
    api: dict[str, Any] = client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/score"} <= set(api["paths"])
    chat = api["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "429", "503"} <= set(chat["responses"])
    assert api["components"]["schemas"]["ChatRequest"]["additionalProperties"] is False
