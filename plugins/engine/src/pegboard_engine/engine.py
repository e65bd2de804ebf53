"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import Engine, RequestOutput
from pegboard.types import SamplingParams, StepResult
from pegboard_engine.inputs import build_plan
from pegboard_engine.memory import MemoryPlan, plan_memory
from pegboard_engine.options import EngineOptions
from pegboard_engine.pages import PagePool
from pegboard_engine.request import FINISH_REASONS, Request, State, check_params
from pegboard_engine.scheduler import Schedule, Scheduler
from pegboard_engine.text import OutputText

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.executor import Executor
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry

log = logging.getLogger("pegboard.engine")


class PagedEngine(Engine):
    """Continuous batching over a paged cache. Pages belong to the scheduler, tensors to the executor, text is kept here."""

    memory: MemoryPlan

    def __init__(self, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.weights_version = 0
        self._requests: dict[str, Request] = {}
        self._texts: dict[str, OutputText] = {}
        self._ended: list[RequestOutput] = []
        self._steps = 0
        self._executor: Executor | None = None
        self._tokenizer: Tokenizer | None = None

    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        options = self.options
        self.memory = plan_memory(built, options)
        self._tokenizer, self._registry = tokenizer, registry
        self._vocab_size = built.model.vocab_size
        self._scheduler = Scheduler(
            PagePool(self.memory.num_pages),
            page_size=options.page_size,
            max_num_tokens=options.max_num_tokens,
            max_num_seqs=options.max_num_seqs,
        )
        self._executor = registry.create("executor", options.executor)
        self._executor.load(built, self.memory.layout, self.memory.num_pages)

    @property
    def num_held_pages(self) -> int:
        """Pages of the cache that some request or lease holds."""
        return self._scheduler.pages.num_held

    def add_request(self, request_id: str, prompt: str | Sequence[int], params: SamplingParams) -> None:
        self._loaded()
        if request_id in self._requests:
            raise ConfigError(f"request id {request_id!r} is in use", fix="give every request an id of its own")
        check_params(params)
        tokens = self._prompt_ids(prompt)
        tokenizer = self._tokenizer
        eos = () if params.ignore_eos or tokenizer is None else tokenizer.eos_ids
        request = Request(
            request_id,
            tokens,
            params,
            limit=min(len(tokens) + params.max_tokens, self.memory.longest),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_ids=frozenset((*eos, *params.stop_ids)),
        )
        if params.stop and tokenizer is None:
            raise ConfigError("stop texts need a tokenizer", fix="use stop_ids, or load the engine with a tokenizer")
        if tokenizer is not None:
            self._texts[request_id] = OutputText(tokenizer.stream(), params.stop)
        self._requests[request_id] = request
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            self._ended.append(self._end(request, State.ABORTED))

    def step(self) -> list[RequestOutput]:
        executor = self._loaded()
        ended, self._ended = self._ended, []
        schedule = self._scheduler.schedule()
        if not schedule:
            return ended
        self._steps += 1
        plan, sampled = build_plan(self._steps, schedule, self.options.page_size)
        try:
            result = executor.collect(executor.submit(plan))
        except Exception as error:
            return ended + self._fail(schedule, error)
        self._scheduler.computed(schedule)
        return ended + self._advance(sampled, result)

    def has_unfinished(self) -> bool:
        return bool(self._requests or self._ended)

    def update_weights(self, version: int) -> None:
        self._loaded().update_weights(version)
        self.weights_version = version

    def close(self) -> None:
        for request in list(self._requests.values()):
            self._end(request, State.ABORTED)
        self._ended = []
        if self._executor is not None:
            self._scheduler.pages.end_all_leases()
            self._executor.close()
            self._executor = None

    def _advance(self, sampled: Sequence[Request], result: StepResult) -> list[RequestOutput]:
        """Give each request its token."""
        outputs = []
        for request, token, valid in zip(
            sampled, result.token_ids.tolist(), result.extras["valid"].tolist(), strict=True
        ):
            if not valid:
                request.error = "the model's logits are not finite"
                outputs.append(self._end(request, State.FAILED))
                continue
            state, text = request.append(token), self._texts.get(request.id)
            piece = "" if text is None or state is State.STOPPED else text.push(token)
            if text is not None and text.stopped:
                state = State.STOPPED
            if state is None:
                outputs.append(self._output(request, [token], piece))
            else:
                outputs.append(self._end(request, state, [token], piece))
        return outputs

    def _fail(self, schedule: Schedule, error: Exception) -> list[RequestOutput]:
        """End the requests of a step that raised; those that wait are not touched."""
        log.error("a step failed, and its %d requests with it", len(schedule.requests), exc_info=error)
        for request in schedule.requests:
            request.error = f"the step failed: {type(error).__name__}: {error}"
        return [self._end(request, State.FAILED) for request in schedule.requests]

    def _end(self, request: Request, state: State, ids: list[int] | None = None, piece: str = "") -> RequestOutput:
        """Move a request to a terminal state, free all that it holds, and return its last output."""
        self._scheduler.finish(request, state)
        del self._requests[request.id]
        text = self._texts.pop(request.id, None)
        output = self._output(request, ids or [], piece + (text.flush() if text is not None else ""))
        output.finish_reason, output.error = FINISH_REASONS[state], request.error
        self._registry.hooks.call("request_finished", output=output)
        return output

    def _output(self, request: Request, ids: list[int], text: str) -> RequestOutput:
        return RequestOutput(
            request.id, ids, text, num_prompt_tokens=request.num_prompt, num_output_tokens=request.num_output
        )

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise ConfigError("a prompt of text needs a tokenizer", fix="give token ids, or load a tokenizer")
            prompt = self._tokenizer.encode(prompt)
        tokens = list(prompt)
        if not tokens:
            raise ConfigError("the prompt is empty", fix="give at least one token")
        if not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            wrong = next(t for t in tokens if not 0 <= t < self._vocab_size)
            raise ConfigError(f"token id {wrong} is not in the vocabulary of {self._vocab_size}", fix="correct the ids")
        if len(tokens) >= self.memory.longest:
            raise ConfigError(
                f"the prompt has {len(tokens)} tokens; with at least one of output, {self.memory.longest} fit",
                fix="shorten it, or raise max_model_len or kv_memory",
            )
        return tokens

    def _loaded(self) -> Executor:
        if self._executor is None:
            raise RuntimeError("the engine has no model: it is not loaded, or closed")
        return self._executor
