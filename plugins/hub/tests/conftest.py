"""Tiny Hugging Face folders, and a hub on the loopback device that speaks what huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save_file

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


def write_folder(folder: Path, *, shards: int = 1, hidden: int = 8) -> dict[str, torch.Tensor]:
    """Write a folder with a config, a tokenizer and random weights; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    weights = {f"model.layers.{i}.weight": torch.randn(hidden, hidden).to(torch.bfloat16) for i in range(4)}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "hidden_size": hidden}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("hello")
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (folder / "LICENSE").write_text("terms")
    (folder / "README.md").write_text("# card")
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return weights
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: value for i, (key, value) in enumerate(weights.items()) if i % shards == number}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weights


@dataclass
class Repository:
    """A repository: files by revision. gated: answers 403 to all requests."""

    files: dict[str, dict[str, bytes]]
    gated: bool = False


@dataclass
class Hub:
    """A hub. requests: "METHOD /path" of each request; cut: names of files whose first transfer breaks off half-way."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)

    def add(self, name: str, folder: Path, *, revision: str = "main", gated: bool = False) -> None:
        """Offer the files of a folder as `name` ("owner/name", or "datasets/owner/name")."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repositories.setdefault(name, Repository({}, gated)).files[COMMITS[revision]] = files


class _Handler(BaseHTTPRequestHandler):
    """The end points of https://huggingface.co/docs/hub/api that a snapshot needs."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        kind, name, rest = self._parse(path)
        repository = self.hub.repositories.get(("datasets/" if kind == "datasets" else "") + name)
        if repository is None:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        action, _, rest = rest.partition("/")
        revision, _, file = rest.partition("/")
        commit = COMMITS.get(revision or "main", revision)
        files = repository.files.get(commit)
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if action in ("", "revision"):
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        if action == "tree":
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self._json(entries)
        if file not in files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        return self._file(file, files[file], commit)

    def _parse(self, path: str) -> tuple[str, str, str]:
        """Return kind ("models" or "datasets"), the repository's name and what follows it."""
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            return parts[1], "/".join(parts[2:4]), "/".join(parts[4:])
        kind = "datasets" if parts[0] == "datasets" else "models"
        start = 1 if kind == "datasets" else 0
        return kind, "/".join(parts[start : start + 2]), "/".join(parts[start + 2 :])

    def _file(self, name: str, content: bytes, commit: str) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        status, body = 200, content
        if wanted is not None:
            self.hub.ranges.append(f"{name} {wanted}")
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            body = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{len(content)}"
            status = 206
        if self.command == "GET" and name in self.hub.cut:
            self.hub.cut.discard(name)
            self._send(status, body, headers, send=len(body) // 2)
            self.close_connection = True
            return
        self._send(status, body, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], send: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:send])


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Run Python against the hub with a cache of its own; huggingface_hub reads its settings when it is imported."""

    def start(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        environment = {**kept, **ours, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **settings}
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)

    return start


@pytest.fixture
def peg(run: Run) -> Run:
    """Run `peg` as a user would."""
    return lambda *arguments, **settings: run("-m", "pegboard", *arguments, **settings)


@pytest.fixture
def fetch(run: Run) -> Run:
    """Fetch a model as the format does; much faster than `peg download`, which also checks what came."""
    code = "import sys; from pegboard_hub.download import download_model; print(download_model(*sys.argv[1:]))"
    return lambda *arguments, **settings: run("-c", code, *arguments, **settings)


@pytest.fixture
def make_folder() -> Callable[..., dict[str, torch.Tensor]]:
    return write_folder
