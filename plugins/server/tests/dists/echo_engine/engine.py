"""An engine that computes nothing: what it says, how fast, and how it fails stands in the prompt.

`say:TEXT` up to the end of a line is the answer, else the prompt's own letters are. Words of a prompt: `!long` goes on until max_tokens,
`!fail`, `!reject`, `!lose` and `!late` end the request with an error, a mistake of its own, the loss of what computed it, and its
deadline; `!raise` makes the step raise, `!die` every step from then on; `!wait` never comes to its turn; `!stuck` cannot be ended.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import Engine, EngineStats, RequestOptions, RequestOutput, TokenLogprobs
from pegboard.types import SamplingParams

EOS = 257
ENDINGS: dict[str, dict[str, Any]] = {
    "!fail": {"finish_reason": "error"},
    "!reject": {"finish_reason": "error", "rejected": True},
    "!lose": {"finish_reason": "error", "lost": True},
    "!late": {"finish_reason": "timeout"},
}


class EchoOptions(BaseModel):
    """pace: seconds of a step."""

    pace: float = 0.0
    max_model_len: int = 256
    max_num_seqs: int = 64


class Answering:
    """A request on its way."""

    def __init__(self, ids: list[int], params: SamplingParams, options: RequestOptions) -> None:
        self.ids, self.params, self.options = ids, params, options
        self.words = bytes(i if i < 256 else 10 for i in ids).decode("utf-8", "replace")
        said = self.words.rpartition("say:")[2].partition("\n")[0] if "say:" in self.words else self.words
        self.reply = list(said.encode()) + ([] if "!long" in self.words or params.ignore_eos else [EOS])
        self.done: dict[int, int] = dict.fromkeys(range(params.n), 0)
        self.queued = time.monotonic()


class EchoEngine(Engine):
    """seen: every request, for tests to look at."""

    def __init__(self, options: EchoOptions | None = None) -> None:
        self.options = options or EchoOptions()
        self.max_model_len, self.vocab_size = self.options.max_model_len, 260
        self.requests: dict[str, Answering] = {}
        self.ended: list[RequestOutput] = []
        self.seen: list[tuple[str, list[int], SamplingParams, RequestOptions]] = []
        self.aborted: list[str] = []
        self.calls: list[str] = []
        self.steps, self.closed, self.dead = 0, False, False
        self.finished: dict[Any, int] = {}
        self.folders: dict[str, str] = {}

    def load(self, built: Any, tokenizer: Any, registry: Any) -> None:
        self.tokenizer = tokenizer

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        options: RequestOptions | None = None,
    ) -> None:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        options = options or RequestOptions()
        if len(ids) + 1 > self.max_model_len:
            raise ConfigError(f"the prompt has {len(ids)} tokens", fix="shorten it")
        if options.adapter is not None and options.adapter not in self.folders:
            raise ConfigError(f"no adapter {options.adapter!r} is loaded", fix="load it")
        self.seen.append((request_id, ids, params, options))
        self.requests[request_id] = Answering(ids, params, options)

    def abort(self, request_id: str) -> None:
        request = self.requests.pop(request_id, None)
        if request is not None and "!stuck" in request.words:
            raise RuntimeError("secret: it cannot be ended")
        if request is not None:
            self.aborted.append(request_id)
            for index in request.done:
                self.ended.append(RequestOutput(request_id, index=index, finish_reason="abort"))

    def step(self) -> list[RequestOutput]:
        outputs, self.ended = self.ended, []
        if self.dead:
            raise RuntimeError("secret: the device fell off")
        running = [r for r in self.requests.items() if "!wait" not in r[1].words][: self.options.max_num_seqs]
        if not running:
            return outputs
        self.steps += 1
        if self.options.pace:
            time.sleep(self.options.pace)
        for request_id, request in running:
            outputs += self._advance(request_id, request)
        for output in outputs:
            if output.finish_reason is not None:
                self.finished[output.finish_reason] = self.finished.get(output.finish_reason, 0) + 1
        return outputs

    def has_unfinished(self) -> bool:
        return bool(self.requests or self.ended)

    def update_weights(self, version: int) -> None:
        return

    def close(self) -> None:
        self.closed = True

    def stats(self) -> EngineStats:
        waiting = sum("!wait" in r.words for r in list(self.requests.values()))
        held = len(self.requests)
        return EngineStats(held - waiting, waiting, 100, held, 3, self.steps, 7, 5, 10, 4, 2, dict(self.finished))

    def reset_cache(self) -> None:
        self.calls.append("reset_cache")

    def load_adapter(self, name: str, folder: str) -> None:
        if name in self.folders:
            raise ConfigError(f"adapter {name!r} is loaded already", fix="unload it first")
        self.folders[name] = folder

    def unload_adapter(self, name: str) -> None:
        if name not in self.folders:
            raise ConfigError(f"no adapter {name!r} is loaded", fix="name one that is")
        del self.folders[name]

    def adapters(self) -> dict[str, str]:
        return dict(self.folders)

    def _advance(self, request_id: str, request: Answering) -> list[RequestOutput]:
        words = request.words
        if "!raise" in words or "!die" in words:
            self.dead = "!die" in words
            raise RuntimeError("secret: the device fell off")
        if request.options.task == "embed":
            del self.requests[request_id]
            total = float(sum(request.ids))
            return [
                self._output(
                    request_id, request, 0, finish_reason="stop", embedding=[total, float(len(request.ids)), 1.0]
                )
            ]
        for word, ending in ENDINGS.items():
            if word in words:
                del self.requests[request_id]
                text = "the grammar does not compile" if "rejected" in ending else "secret: the device fell off"
                return [self._output(request_id, request, i, error=text, **ending) for i in request.done]
        return [self._token(request_id, request, index) for index in list(request.done)]

    def _token(self, request_id: str, request: Answering, index: int) -> RequestOutput:
        place, params = request.done[index], request.params
        token = self._next(request, place)
        request.done[index] = place + 1
        text = bytes([token]).decode("latin-1") if token < 256 else ""
        reason: Any = "stop" if token == EOS else "length" if place + 1 >= params.max_tokens else None
        output = self._output(
            request_id, request, index, num=place + 1, token_ids=[token], text=text, finish_reason=reason
        )
        if place == 0:
            output.queue_time = time.monotonic() - request.queued
            if params.prompt_logprobs is not None:
                output.prompt_logprobs = [None, *(told(i, params.prompt_logprobs) for i in request.ids[1:])]
        if params.logprobs is not None or params.logprob_ids:
            output.logprobs = [told(token, params.logprobs or 0, params.logprob_ids)]
        if reason is not None:
            del request.done[index]
            if not request.done:
                del self.requests[request_id]
        return output

    def _next(self, request: Answering, place: int) -> int:
        grammar = request.params.grammar
        reply = request.reply
        if grammar is not None and grammar.kind == "choice":
            reply = [*json.loads(grammar.value)[0].encode(), EOS]
        return reply[place % len(reply)]

    def _output(self, request_id: str, request: Answering, index: int, num: int = 0, **fields: Any) -> RequestOutput:
        return RequestOutput(
            request_id,
            index=index,
            num_prompt_tokens=len(request.ids),
            num_output_tokens=num,
            num_cached_tokens=min(4, len(request.ids) - 1),
            **fields,
        )


def told(token: int, count: int, extra: Sequence[int] = ()) -> TokenLogprobs:
    """The log-probability of id t is -(t % 10 + 1) / 10 everywhere; the most probable ones are the next multiples of ten."""
    top = [((token // 10 + k) * 10 % 260, -(k + 1) / 10) for k in range(count)]
    return TokenLogprobs(token, logprob(token), token % 10 + 1, top, [(i, logprob(i)) for i in extra])


def logprob(token: int) -> float:
    """Return the log-probability of an id."""
    return -(token % 10 + 1) / 10
