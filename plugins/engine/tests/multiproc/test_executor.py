from __future__ import annotations

import gc
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard.build import BuiltModel
from pegboard.errors import ConfigError, ModelError
from pegboard.interfaces.executor import ExecutorDied
from pegboard.opened import open_any
from pegboard.plugins.load import Registry
from pegboard.types import CachePlan, SamplingParams, StepPlan
from pegboard_engine import LLM
from pegboard_engine.executor import UniprocExecutor
from pegboard_engine.memory import cache_layout
from pegboard_engine.multiproc.executor import MultiprocExecutor
from pegboard_engine.multiproc.options import MultiprocOptions
from pegboard_engine.multiproc.values import pack
from pegboard_engine.sampling.batch import SamplingBatch
from pegboard_sdk.site import Site
from pegboard_sdk.toys.model import random_model
from pegboard_sdk.toys.plans import prompt_plan

IDS = [3, 1, 4, 1, 5]
SLEEPER = """
import time
from pegboard.interfaces.logits_processor import LogitsProcessor
from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(kind="logits_processor", target="sleeper:Sleeper")


class Sleeper(LogitsProcessor):
    def process(self, logits, rows):
        time.sleep(1000)
"""


def prepare(folder: Path) -> BuiltModel:
    return open_any(Registry.discover(), str(folder)).prepare(Registry.discover(), dtype="float32")


def cache_of(built: BuiltModel, **layout: Any) -> CachePlan:
    return CachePlan(replace(cache_layout(built, 8), **layout), 4, 2, 2)


def start(folder: Path, **layout: Any) -> MultiprocExecutor:
    built = prepare(folder)
    made = MultiprocExecutor(MultiprocOptions(stop_timeout=200))
    made.load(built, cache_of(built, **layout), Registry.discover())
    return made


@pytest.fixture(scope="module")
def executor(folder: Path) -> Iterator[MultiprocExecutor]:
    made = start(folder)
    yield made
    made.close()
    made.close()


@pytest.fixture(scope="module")
def expected(folder: Path) -> Iterator[UniprocExecutor]:
    built = prepare(folder)
    made = UniprocExecutor()
    made.load(built, cache_of(built), Registry.discover())
    yield made
    made.close()


plan = partial(prompt_plan, IDS)


def ids(executor: Any, asked: StepPlan) -> list[int]:
    found: list[int] = executor.collect(executor.submit(asked)).token_ids.tolist()
    return found


def test_steps_give_what_they_give_in_one_process(executor: MultiprocExecutor, expected: UniprocExecutor) -> None:
    for rows in ([4], [0, 1, 2, 3, 4], []):
        assert ids(executor, plan(rows)) == ids(expected, plan(rows))
    words = np.zeros((1, 9), dtype=np.int32)
    words[0, 5] = 1 << 3
    masked = SamplingBatch(np.array([1], np.int32), mask_rows=np.array([0], np.int32), masks=words)
    assert ids(executor, plan([4], sampling=masked)) == [5 * 32 + 3]


def test_two_steps_in_flight_of_which_the_second_needs_the_first(
    executor: MultiprocExecutor, expected: UniprocExecutor
) -> None:
    count = len(IDS)
    second = plan(
        [0],
        step=2,
        input_ids=np.array([-1]),
        positions=np.array([count]),
        query_lens=np.array([1], dtype=np.int32),
        seq_lens=np.array([count + 1], dtype=np.int32),
        slot_mapping=np.array([8 + count]),
        num_decodes=1,
        table=(np.array([], dtype=np.int32),) * 3,
    )
    one, two = executor.submit(plan([4])), executor.submit(second)
    with pytest.raises(RuntimeError, match="in flight already"):
        executor.submit(second)
    with pytest.raises(RuntimeError, match=f"no step {two} to collect"):
        executor.collect(two)
    found = [executor.collect(handle).token_ids.tolist() for handle in (one, two)]
    assert found == [ids(expected, plan([4])), ids(expected, second)]
    with pytest.raises(RuntimeError, match=f"no step {two} to collect"):
        executor.collect(two)


def test_what_is_asked_between_steps_waits_for_them(executor: MultiprocExecutor, expected: UniprocExecutor) -> None:
    handles = [executor.submit(plan([4])) for _ in range(2)]
    executor.update_weights(1)
    executor.unload_adapter(0)
    for handle in handles:
        assert executor.collect(handle).token_ids.tolist() == ids(expected, plan([4]))


def test_an_error_belongs_to_its_step_and_the_worker_goes_on(executor: MultiprocExecutor) -> None:
    worker = executor._workers[0].pid
    broken, good = executor.submit(plan([4], input_ids=np.array([999] * 5))), executor.submit(plan([4]))
    with pytest.raises(RuntimeError, match=r"^IndexError: index out of range") as caught:
        executor.collect(broken)
    assert "runner.py" in caught.value.__notes__[0]
    assert len(executor.collect(good).token_ids) == 1
    handle = executor.submit(plan([4], extras={"odd": {1, 2}}))
    with pytest.raises(TypeError, match="a set cannot be sent"):
        executor.collect(handle)
    assert len(ids(executor, plan([4]))) == 1
    assert executor._workers[0].pid == worker


def test_an_answer_never_goes_to_another_step(executor: MultiprocExecutor, expected: UniprocExecutor) -> None:
    forgotten = pack(plan([0, 1], step=5))  # sent, when Ctrl-C came before it was noted
    executor._workers[0].send("step", forgotten, 200)
    result = executor.collect(executor.submit(plan([4], step=6)))
    assert (result.step, result.token_ids.tolist()) == (6, ids(expected, plan([4])))
    executor._workers[0].send("step", forgotten, 200)
    executor.unload_adapter(0)
    assert ids(executor, plan([4])) == ids(expected, plan([4]))


def test_steps_larger_than_any_before(executor: MultiprocExecutor) -> None:
    expected = ids(executor, plan([4]))
    for size in (1, 300_000, 1, 3_000_000, 1):
        assert ids(executor, plan([4], extras={"unused": np.zeros(size)})) == expected


def test_a_model_without_a_location_or_with_weights_here_is_refused(folder: Path) -> None:
    made = random_model(phase="decode", seed=3)
    for built, reason in (
        (made, "was made in this one"),
        (prepare(folder).load(), "has its weights in this process"),
    ):
        executor = MultiprocExecutor()
        with pytest.raises(ConfigError, match=reason):
            executor.load(built, cache_of(built), Registry.discover())
        executor.close()


def test_without_a_model_nothing_runs() -> None:
    executor = MultiprocExecutor()
    executor.close()
    for call in (
        lambda: executor.submit(plan([4])),
        lambda: executor.collect(1),
        lambda: executor.update_weights(1),
        lambda: executor.unload_adapter(0),
        executor.restart,
    ):
        with pytest.raises(RuntimeError, match="not loaded, or closed"):
            call()


def test_weights_that_came_here_meanwhile_are_not_reloaded(
    executor: MultiprocExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executor._built is not None
    monkeypatch.setattr(executor, "_built", replace(executor._built, pending=[]))
    with pytest.raises(ConfigError, match="would not see a change"):
        executor.update_weights(2)


@pytest.mark.slow
def test_what_is_wrong_with_a_model_is_told_as_it_is_in_one_process(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    built = prepare(copy)
    (copy / "model.safetensors").unlink()
    executor = MultiprocExecutor()
    with pytest.raises(ModelError, match=r"model\.safetensors|weights") as caught:
        executor.load(built, cache_of(built), Registry.discover())
    assert caught.value.fix
    assert executor._workers == []
    executor.close()


@pytest.mark.slow
def test_a_start_that_takes_too_long(folder: Path) -> None:
    built = prepare(folder)
    executor = MultiprocExecutor(MultiprocOptions(start_timeout=0.001))
    with pytest.raises(ExecutorDied, match="has not answered"):
        executor.load(built, cache_of(built), Registry.discover())
    with pytest.raises(ExecutorDied, match="has not answered"):
        executor.submit(plan([4]))
    executor.close()


@pytest.mark.slow
def test_ranks_get_the_same_and_the_first_one_counts(folder: Path, expected: UniprocExecutor) -> None:
    executor = start(folder, shard=(0, 2))
    workers = list(executor._workers)
    assert [worker.rank for worker in workers] == [0, 1]
    handles = [executor.submit(plan([4])) for _ in range(2)]
    assert [executor.collect(handle).token_ids.tolist() for handle in handles] == [ids(expected, plan([4]))] * 2
    handle = executor.submit(plan([4]))
    os.kill(workers[1].pid, 9)
    with pytest.raises(ExecutorDied, match=r"worker 1 .* SIGKILL"):
        for _ in range(2):  # it may have answered before
            executor.collect(handle)
            handle = executor.submit(plan([4]))
    assert all(worker._process.returncode == -9 for worker in workers)
    executor.restart()
    assert ids(executor, plan([4])) == ids(expected, plan([4]))
    executor.close()


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(
    folder: Path, plugin_site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plugin_site.add("sleeper", {("logits_processor", "sleeper"): "sleeper:SPEC"}, {"sleeper": SLEEPER})
    monkeypatch.delenv("PEGBOARD_PLUGINS")
    with LLM(str(folder), dtype="float32", executor="multiproc", registry=Registry.discover()) as llm:
        params = SamplingParams(max_tokens=3, temperature=0)
        plain = llm.generate("hello", params)
        with monkeypatch.context() as patch:
            # For the step that never ends alone: all others may take as long as the machine needs.
            patch.setattr(llm.engine._executor, "_options", MultiprocOptions(step_timeout=2.0))
            (slept,) = llm.generate("hello", replace(params, processors=(("sleeper", {}),)))
        assert slept.outputs[0].finish_reason == "error"
        assert "has not answered for 2 s" in (slept.outputs[0].error or "")
        # Where it hung stands in the log: it is nothing for whoever sent the request.
        assert "in process" in caplog.text
        assert [g.outputs for g in llm.generate("hello", params)] == [g.outputs for g in plain]


@pytest.mark.slow
def test_nothing_is_left_after_many_starts(folder: Path) -> None:
    def held() -> tuple[Any, ...]:
        """Counts and sets, which may only shrink: what other tests left behind may go meanwhile."""
        gc.collect()
        memory = Path("/dev/shm")
        return (
            len(os.listdir("/dev/fd")),
            set(threading.enumerate()),
            {name for name in os.listdir(memory) if "pegboard" in name} if memory.is_dir() else set(),
            set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
            Path("/proc/self/maps").read_text().count("memfd:pegboard"),
        )

    start(folder).close()
    before = held()
    for number in range(20):
        executor = start(folder)
        ids(executor, plan([4], extras={"unused": np.zeros(100_000 * (number % 3))}))
        if number % 4 == 0:
            os.kill(executor._workers[0].pid, 9)
            with pytest.raises(ExecutorDied):
                ids(executor, plan([4]))
        executor.close()
    for now, then in zip(held(), before, strict=True):
        assert now <= then
