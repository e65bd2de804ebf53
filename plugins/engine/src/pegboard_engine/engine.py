"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import Engine, EngineStats, FinishReason, RequestOptions, RequestOutput
from pegboard.interfaces.executor import ExecutorDied
from pegboard.types import CachePlan, SamplingParams
from pegboard_engine.adapters import LoadedAdapters, adapter_bytes
from pegboard_engine.feed import computes_apart
from pegboard_engine.flights import Flights
from pegboard_engine.grammars import Grammars, allowed_ids
from pegboard_engine.inputs import build_plan
from pegboard_engine.intake import Intake
from pegboard_engine.memory import MemoryPlan, plan_memory
from pegboard_engine.options import EngineOptions
from pegboard_engine.outputs import StepOutputs, last_output
from pegboard_engine.pages import PagePool
from pegboard_engine.policy import POLICIES
from pegboard_engine.prefix import PrefixCache
from pegboard_engine.proposals import Proposals
from pegboard_engine.reading import Reader
from pegboard_engine.request import FINISH_REASONS, Request, State
from pegboard_engine.rows import spread
from pegboard_engine.sampling.columns import SamplingColumns
from pegboard_engine.scheduler import Scheduler
from pegboard_engine.table import Table
from pegboard_engine.timeouts import Timeouts

if TYPE_CHECKING:
    from pegboard.build import BuiltModel
    from pegboard.interfaces.executor import Executor
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry

log = logging.getLogger("pegboard.engine")

_IDLE_SECONDS = 0.02


class PagedEngine(Engine):
    """Continuous batching over a paged cache.

    Slots and pages belong to the scheduler, tensors to the executor, steps on their way to `Flights`; requests are kept here.
    """

    memory: MemoryPlan

    def __init__(self, options: EngineOptions | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options or EngineOptions()
        self.weights_version = 0
        self._clock = clock
        self._requests: dict[str, list[Request]] = {}
        self._outputs = StepOutputs()
        self._flights: Flights | None = None
        self._wake = threading.Event()
        self._finished: Counter[FinishReason] = Counter()
        self._steps = self._prompt_tokens = self._arrivals = 0
        self._executor: Executor | None = None
        self._proposals: Proposals | None = None
        self._grammars: Grammars | None = None

    def load(self, built: BuiltModel, tokenizer: Tokenizer | None, registry: Registry) -> None:
        options = self.options
        adapters = adapter_bytes(built, registry, options.max_adapters, options.max_adapter_rank)
        speculator = None if options.speculator is None else registry.create("speculator", options.speculator)
        # Of a proposal each token has a row, and what comes behind it one more.
        most_queries = 1 if speculator is None else 1 + speculator.most
        self.memory = memory = plan_memory(built, options, adapters, most_queries)
        log.info("memory\n%s", memory.table())
        self._tokenizer, self._registry = tokenizer, registry
        self.vocab_size, self.max_model_len = built.model.vocab_size, memory.longest
        pages = PagePool(memory.num_pages)
        self._table = Table(
            options.max_num_seqs, memory.longest + 1, options.page_size, rope_limit=built.model.rope_limit
        )
        self._prefixes = PrefixCache(pages, options.page_size, enabled=options.prefix_caching)
        self._scheduler = Scheduler(
            pages,
            self._table,
            self._prefixes,
            max_num_tokens=options.tokens_a_step(computes_apart(built)),
            rank=POLICIES[options.policy],
            watermark=int(options.watermark * memory.num_pages),
            look_past=options.look_past,
        )
        self._columns = SamplingColumns(options.max_num_seqs, self.vocab_size)
        self._timeouts = Timeouts(self._clock)
        self._intake = Intake(tokenizer, registry, self.vocab_size, memory.longest, options.max_logprobs)
        if speculator is not None:
            self._proposals = Proposals(speculator, self._table)
            self._proposals.load(built, tokenizer, registry)
        reader = Reader(self._scheduler, self, self._proposals, self._clock)
        self._executor = registry.create("executor", options.executor)
        self._flights = Flights(self._executor, self._table, reader, self, self._wake.wait)
        self._adapters = LoadedAdapters(registry, options.max_adapters)
        cache = CachePlan(
            memory.layout,
            memory.num_pages,
            options.max_num_seqs,
            self._table.pages.shape[1],
            options.max_adapters,
            options.max_adapter_rank,
            options.graphs,
            options.count_experts,
            most_queries,
            options.rehearse,
        )
        self._executor.load(built, cache, registry)

    @property
    def num_held_pages(self) -> int:
        """Pages of the cache that some request or lease holds."""
        return self._scheduler.pages.num_held

    def add_request(
        self,
        request_id: str,
        prompt: str | Sequence[int],
        params: SamplingParams,
        options: RequestOptions | None = None,
    ) -> None:
        self._loaded()
        if request_id in self._requests:
            raise ConfigError(f"request id {request_id!r} is in use", fix="give every request an id of its own")
        options = options or RequestOptions()
        tokens = self._intake.prompt_ids(prompt)
        self._intake.check(params, options, len(tokens))
        if params.grammar is not None and self._grammars is None:
            assert self._tokenizer is not None
            self._grammars = Grammars(
                self._registry, self._tokenizer, self.vocab_size, self.options.grammar, self._wake.set
            )
        root = self._root(options)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        requests = []
        for index in range(params.n):
            request = self._intake.request(request_id, index, tokens, params, options)
            request.sync |= self._proposals is not None
            request.adapter = self._adapters.slot(options.adapter)
            self._arrivals += 1
            request.arrival, request.created, request.seed, request.root = self._arrivals, self._clock(), seed, root
            requests.append(request)
        self._requests[request_id] = requests
        self._adapters.use(options.adapter, len(requests))
        self._prompt_tokens += len(tokens)
        for request in requests:
            self._timeouts.watch(request)
            if params.grammar is not None and self._grammars is not None:
                request.state = State.WAITING_FOR_GRAMMAR
                self._grammars.start(request, params.grammar)
            else:
                self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        for request in list(self._requests.get(request_id, ())):
            self._outputs.append(self.end(request, State.ABORTED))

    def step(self) -> Sequence[RequestOutput]:
        _, flights = self._loaded()
        self._wake.clear()
        if flights.restart_due:
            flights.restart()
        self._admit_grammars()
        for request in self._timeouts.over():
            self._outputs.append(self.end(request, State.TIMED_OUT))
        try:
            while flights.has_room and self._submit(flights):
                pass
            if len(flights):
                flights.collect(self._outputs)
            elif not self._outputs and self._requests:
                self._wake.wait(_IDLE_SECONDS)
        except ExecutorDied as error:
            flights.lose(error, self._outputs)
            self._prefixes.reset()
        outputs, self._outputs = self._outputs, StepOutputs()
        return outputs

    def has_unfinished(self) -> bool:
        return bool(self._requests or self._outputs or (self._flights is not None and self._flights.restart_due))

    def update_weights(self, version: int) -> None:
        self._drain()
        self._loaded()[0].update_weights(version)
        self.weights_version = version
        for requests in self._requests.values():
            for request in requests:
                self._scheduler.renew(request, self._root(request.options))

    def load_adapter(self, name: str, folder: str) -> None:
        self._adapters.load(name, folder, self._loaded()[0])

    def unload_adapter(self, name: str) -> None:
        self._drain()
        self._adapters.unload(name, self._loaded()[0])

    def adapters(self) -> Mapping[str, str]:
        return {} if self._executor is None else self._adapters.folders

    def prepare(self) -> bool:
        executor, flights = self._loaded()
        return not (self._requests or len(flights)) and bool(executor.prepare())

    def reset_cache(self) -> None:
        self._prefixes.reset()

    def stats(self) -> EngineStats:
        if self._executor is None:
            return EngineStats(finished=dict(self._finished))
        pages = self._scheduler.pages
        experts = self._executor.expert_tokens() if self.options.count_experts else None
        return EngineStats(
            running=len(self._table),
            waiting=sum(map(len, list(self._requests.values()))) - len(self._table),
            pages=pages.num_pages - 1,
            held_pages=pages.num_held,
            cached_pages=pages.num_kept,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=0 if self._flights is None else self._flights.num_tokens,
            prefix_queries=self._prefixes.queries,
            prefix_hits=self._prefixes.hits,
            preemptions=self._scheduler.num_preemptions,
            proposed=0 if self._proposals is None else self._proposals.proposed,
            accepted=0 if self._proposals is None else self._proposals.accepted,
            finished=dict(self._finished),
            expert_tokens=experts or (),
        )

    def close(self) -> None:
        for requests in list(self._requests.values()):
            for request in list(requests):
                self.end(request, State.ABORTED)
        self._outputs = StepOutputs()
        if self._flights is not None:
            self._flights.forget()
        if self._grammars is not None:
            self._grammars.close()
            self._grammars = None
        if self._proposals is not None:
            self._proposals.close()
            self._proposals = None
        if self._executor is not None:
            self._scheduler.pages.end_all_leases()
            self._executor.close()
            self._executor = None

    def end(
        self, request: Request, state: State, ids: Sequence[int] = (), piece: str = "", count: int | None = None
    ) -> RequestOutput:
        """Move a request to a terminal state, free all that it holds, and return its last output, as `Ends.end` says."""
        if request.slot >= 0:
            self._columns.clear(request.slot)
        if self._grammars is not None and request.state is State.WAITING_FOR_GRAMMAR:
            self._grammars.drop(request)
        self._scheduler.finish(request, state)
        self._adapters.use(request.options.adapter, -1)
        siblings = self._requests[request.id]
        siblings.remove(request)
        if not siblings:
            del self._requests[request.id]
        if self._proposals is not None:
            self._proposals.forget(request)
        count = request.num_output if count is None else count
        output = last_output(request, state, ids, piece, count, self._clock())
        self._finished[FINISH_REASONS[state]] += 1
        self._registry.hooks.call("request_finished", output=output)
        return output

    def blame(self, request: Request, what: str, error: Exception) -> RequestOutput:
        """End the one request that an exception belongs to."""
        log.error("request %s: %s failed", request.id, what, exc_info=error)
        request.error = f"{what} failed: {type(error).__name__}"
        return self.end(request, State.FAILED)

    def _root(self, options: RequestOptions) -> bytes:
        """Return what pages must have in common beside their tokens."""
        return self._prefixes.root(options.salt, self._adapters.key(options.adapter), self.weights_version)

    def _submit(self, flights: Flights) -> bool:
        """Schedule a step and start it; False when there is nothing to do."""
        if self._proposals is not None:
            self._proposals.draft(self._scheduler)
        schedule = self._scheduler.schedule()
        if schedule is None:
            return False
        self._steps += 1
        for slot in schedule.admitted:
            self._enter(slot)
        positions = schedule.places - self._table.num_prompt[slots := schedule.slots[schedule.sampled]]
        if schedule.drafts is not None:
            slots, positions = spread(slots, positions, schedule.drafts)
        sampling = self._columns.batch(slots, positions, self._masks(slots)) if len(slots) else None
        flights.submit(build_plan(self._steps, schedule, self._table, sampling), schedule, self._outputs)
        return True

    def _enter(self, slot: int) -> None:
        """Tell the sampler of a request that got a slot."""
        request = self._table.request(slot)
        if not request.entered:
            request.entered = self._clock()
        if not request.embeds:
            self._intake.enter(self._columns, slot, request)

    def _masks(self, slots: np.ndarray) -> dict[int, np.ndarray] | None:
        """Return which ids the grammars allow next, by row. A grammar that raises ends its request."""
        if not self._table.num_sync:
            return None
        masks, failed = allowed_ids(self._table, slots, self.vocab_size)
        for request, error in failed:
            self._outputs.append(self.blame(request, "its grammar", error))
        return masks or None

    def _admit_grammars(self) -> None:
        for request, problem, rejected in self._grammars.ready() if self._grammars is not None else ():
            if problem is None:
                request.to(State.WAITING)
                self._scheduler.add(request)
            else:
                request.error = problem
                output = self.end(request, State.FAILED)
                output.rejected = rejected
                self._outputs.append(output)

    def _drain(self) -> None:
        """Collect the steps in flight; their outputs come with the next step."""
        _, flights = self._loaded()
        try:
            flights.drain(self._outputs)
        except ExecutorDied as error:
            flights.lose(error, self._outputs)
            self._prefixes.reset()
            flights.restart()

    def _loaded(self) -> tuple[Executor, Flights]:
        if self._executor is None or self._flights is None:
            raise RuntimeError("the engine has no model: it is not loaded, or closed")
        return self._executor, self._flights
