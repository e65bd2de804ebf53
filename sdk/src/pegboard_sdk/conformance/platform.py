"""The suite of kind `platform`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor

from pegboard import reference
from pegboard.build import DTYPES
from pegboard.errors import DeviceError
from pegboard.interfaces.platform import Phase, Platform
from pegboard.ops import registered
from pegboard.types import AttentionSpec
from pegboard_sdk.conformance.guard import standard
from pegboard_sdk.conformance.op_samples import GRADIENTS, SAMPLES, Draw, Sample
from pegboard_sdk.conformance.suite import PluginSuite

CAPABILITIES = frozenset({"apart", "bf16", "fp8", "fp8_fnuz", "graphs", "p2p", "pinned"})
PHASES: tuple[Phase, ...] = get_args(Phase)
TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@standard
class PlatformSuite(PluginSuite):
    """The devices of a platform, and its kernels against `pegboard.reference`. At least one device must be there.

    extra_capabilities: words of this platform's own, beside those of the interface.
    tolerances: dtype in which kernels are tested -> absolute and relative tolerance on values of order 1.
    configures: whether `configure` may be called in the process that tests.
    """

    kind = "platform"
    extra_capabilities: ClassVar[frozenset[str]] = frozenset()
    tolerances: ClassVar[Mapping[torch.dtype, float]] = TOLERANCES
    configures: ClassVar[bool] = True

    def samples(self, op: str, draw: Draw) -> Sequence[Sample]:
        """Return inputs for an op; override it for ops that your distribution registers."""
        assert op in SAMPLES, f"{type(self).__name__} needs samples() for the op {op!r}"
        return SAMPLES[op](draw)

    def indices(self) -> list[int]:
        """Return the indices of the devices."""
        return [device.index for device in self.create().devices()]

    def replaced(self, phases: Sequence[Phase] = PHASES) -> Iterator[tuple[str, Callable[..., Any], Draw, float]]:
        """Yield (op, kernel, draw, tolerance) of everything that the first device replaces. Skip when that is nothing."""
        platform: Platform = self.create()
        found = False
        for phase in phases:
            for dtype, tolerance in self.tolerances.items():
                for op, kernel in platform.kernels(phase, dtype).items():
                    found = True
                    yield op, kernel, Draw(dtype, platform.device()), tolerance
        if not found:
            self.skip("kernels() replaces nothing here")

    def test_devices_are_listed(self) -> None:
        """Devices are numbered from 0 and have names."""
        devices = self.create().devices()
        assert devices, "devices() is empty: run this suite where the hardware is"
        assert [device.index for device in devices] == list(range(len(devices)))
        assert all(device.name.strip() for device in devices)

    def test_memory_is_within_bounds(self) -> None:
        """Bytes: something is free, and no more than there is."""
        for device in self.create().devices():
            assert 0 < device.available_memory <= device.total_memory
            assert 1 << 20 < device.total_memory < 1 << 50, "memory is in bytes"

    def test_devices_compute(self) -> None:
        """Tensors can be made on each device, in its default dtype, and multiplied."""
        platform = self.create()
        for index in self.indices():
            x = torch.arange(6.0).reshape(2, 3).to(platform.device(index), platform.default_dtype(index))
            product = x @ x.t()
            platform.synchronize(index)
            assert product.tolist() == [[5.0, 14.0], [14.0, 50.0]]

    def test_absent_device_is_named(self) -> None:
        """An index that does not exist raises DeviceError with a fix."""
        for index in (len(self.indices()), -1):
            with pytest.raises(DeviceError, match=str(index)) as caught:
                self.create().device(index)
            assert caught.value.fix

    def test_capabilities_are_known_words(self) -> None:
        """A misspelt capability would be one that nobody asks for."""
        for index in self.indices():
            assert self.create().capabilities(index) <= CAPABILITIES | self.extra_capabilities

    def test_default_dtype(self) -> None:
        """A dtype that models can have; bfloat16 only where it is fast."""
        platform = self.create()
        for index in self.indices():
            dtype = platform.default_dtype(index)
            assert str(dtype).removeprefix("torch.") in DTYPES
            assert dtype != torch.bfloat16 or "bf16" in platform.capabilities(index)

    def test_attention_preference(self) -> None:
        """Names of attention plugins, each once, for every phase and kind of layer."""
        layers = [AttentionSpec(0, 4, 2, 64, 0.125), AttentionSpec(0, 4, 4, 64, 0.125, window=8, softcap=30.0)]
        for phase in PHASES:
            for layer in layers:
                names = self.create().attention_preference(phase, layer)
                assert isinstance(names, tuple) and len(set(names)) == len(names) > 0
                assert all(isinstance(name, str) and name.strip() for name in names)

    def test_kernels_replace_known_ops(self) -> None:
        """An op that nothing registers cannot be replaced."""
        for op, _, _, _ in self.replaced():
            assert op in registered()

    def test_kernels_equal_the_reference(self) -> None:
        """Every kernel, in every phase and dtype, on every sample; dtype and shape as the replaced function's."""
        for op, kernel, draw, tolerance in self.replaced():
            for sample in self.samples(op, draw):
                with torch.no_grad():
                    out, plain, wanted = (
                        _outcome(function, sample) for function in (kernel, registered()[op].function, _oracle(op))
                    )
                for mine, same, right in zip(out, plain, wanted, strict=True):
                    assert (mine.dtype, mine.shape, mine.device) == (same.dtype, same.shape, same.device), op
                    _close(op, mine, right, tolerance)

    def test_training_kernels_have_right_gradients(self) -> None:
        """Kernels of the phase "train" are differentiable in each input, and in each input alone."""
        for op, kernel, draw, tolerance in self.replaced(("train",)):
            for sample in self.samples(op, draw) if registered()[op].differentiable else ():
                count = sum(isinstance(x, Tensor) and x.is_floating_point() for x in sample)
                count = GRADIENTS.get(op, count)
                for chosen in (range(count), *([i] for i in range(count))):
                    inputs, leaves = _leaves(sample, set(chosen))
                    out, wanted = _floating(kernel(*inputs)), _floating(_oracle(op)(*inputs))
                    # What does not depend on the chosen inputs has no gradient to compare.
                    kept = [i for i, x in enumerate(wanted) if x.requires_grad]
                    out, wanted = tuple(out[i] for i in kept), tuple(wanted[i] for i in kept)
                    upstream = [draw.tensor(*x.shape) for x in out]
                    got = torch.autograd.grad(out, leaves, upstream)
                    right = torch.autograd.grad(
                        wanted, leaves, [x.to(y.dtype) for x, y in zip(upstream, wanted, strict=True)]
                    )
                    for mine, exact in zip(got, right, strict=True):
                        # A gradient sums over rows: its error grows with what is summed.
                        _close(
                            f"the gradient of {op}",
                            mine,
                            exact,
                            tolerance * max([1.0, *exact.abs().flatten().tolist()]),
                        )

    def test_configure_can_be_repeated(self) -> None:
        """Setting knobs once more changes nothing and breaks nothing."""
        self.needs("configures")
        before = torch.get_num_threads()
        try:
            self.create().configure(threads=1)
            self.create().configure(threads=1)
            self.test_devices_compute()
        finally:
            torch.set_num_threads(before)

    def test_graphs(self) -> None:
        """Work is captured where "graphs" is a capability, and replayed on the same buffers; else DeviceError."""
        platform = self.create()
        if "graphs" not in platform.capabilities():
            with pytest.raises(DeviceError) as caught:
                platform.capture(lambda: None)
            assert caught.value.fix
            return
        x = torch.ones(4, device=platform.device())
        total = torch.zeros_like(x)

        def work() -> None:
            total.copy_(x * 3)

        graph = platform.capture(work)
        x.fill_(5)
        graph.replay()
        platform.synchronize()
        assert total.tolist() == [15.0] * 4

    def test_graphs_share_their_memory(self) -> None:
        """Two graphs over one `graph_memory` compute right, one after the other, and what they leave behind stays."""
        platform = self.create()
        if "graphs" not in platform.capabilities():
            self.skip("no graphs")
        memory = platform.graph_memory()
        x = torch.ones(1000, device=platform.device())
        left: list[Tensor] = []

        def work() -> None:
            y = x + 1
            left.append((y * 2) + y)

        graphs = [platform.capture(work, 0, memory) for _ in range(2)]
        results = left[len(left) // 2 - 1], left[-1]
        for turn, (graph, result) in enumerate(zip(graphs * 2, results * 2, strict=True)):
            x.fill_(float(turn))
            graph.replay()
            platform.synchronize()
            assert bool((result == 3.0 * (turn + 1)).all())

    def test_streams_and_events(self) -> None:
        """Work on a stream of its own runs in order, and waits for what another stream recorded; the host can wait for an event."""
        platform = self.create()
        for index in self.indices():
            device = platform.device(index)
            if device.type == "cpu":
                self.skip("the host computes in order, before it returns")
            with torch.device(device):
                x, y = torch.zeros(1 << 20), torch.zeros(1 << 20)
            platform.synchronize(index)
            first, second, done, copied = (
                torch.Stream(device),
                torch.Stream(device),
                torch.Event(device),
                torch.Event(device),
            )
            with first:
                for _ in range(50):
                    x.add_(1)
                done.record(first)
            with second:
                second.wait_event(done)
                y.copy_(x)
                copied.record(second)
            copied.synchronize()
            assert done.query() and copied.query()
            assert bool((y == 50).all())

    def test_random_numbers_repeat(self) -> None:
        """The same seed gives the same numbers on each device, with a generator of its own and with the device's state restored."""
        platform = self.create()
        for index in self.indices():
            device = platform.device(index)
            draws = [
                torch.rand(100, device=device, generator=torch.Generator(device).manual_seed(seed))
                for seed in (7, 7, 8)
            ]
            assert draws[0].equal(draws[1]) and not draws[0].equal(draws[2])
            module = torch.random if device.type == "cpu" else torch.get_device_module(device)
            state = module.get_rng_state() if device.type == "cpu" else module.get_rng_state(device)
            before = torch.rand(100, device=device)
            _ = module.set_rng_state(state) if device.type == "cpu" else module.set_rng_state(state, device)
            assert torch.rand(100, device=device).equal(before)

    def test_copies_from_pinned_memory(self) -> None:
        """Pinned memory of the host is copied both ways, where "pinned" is a capability."""
        platform = self.create()
        for index in self.indices():
            if "pinned" not in platform.capabilities(index):
                self.skip("no pinned memory")
            device = platform.device(index)
            here, back = (torch.arange(1000.0).pin_memory() for _ in range(2))
            assert here.is_pinned()
            there = here.to(device, non_blocking=True) * 2
            back.copy_(there, non_blocking=True)
            platform.synchronize(index)
            assert back.tolist() == [2.0 * i for i in range(1000)]

    def test_copies_between_devices(self) -> None:
        """What one device computed is read by another one."""
        platform = self.create()
        if len(self.indices()) < 2:
            self.skip("one device")
        first, second = (platform.device(index) for index in self.indices()[:2])
        x = torch.arange(1000.0).to(first) + 1
        assert x.to(second).tolist() == [i + 1.0 for i in range(1000)]

    def test_memory_that_is_taken_is_missing(self) -> None:
        """Bytes that tensors hold are no longer available, and are again when they are dropped."""
        platform = self.create()
        for index in self.indices():
            device = platform.device(index)
            if device.type == "cpu":
                self.skip("the host's memory is shared with all that runs")
            size = 1 << 28
            before = platform.devices()[index].available_memory
            held = torch.ones(size, dtype=torch.uint8, device=device)
            platform.synchronize(index)
            assert platform.devices()[index].available_memory <= before - size // 2
            del held
            platform.synchronize(index)
            assert platform.devices()[index].available_memory > before - size // 2

    def test_notes(self) -> None:
        """Lines for people, and a reason for every first choice of attention that is a text."""
        platform, layer = self.create(), AttentionSpec(0, 4, 2, 64, 0.125)
        for index in self.indices():
            assert all(isinstance(line, str) and line.strip() and "\n" not in line for line in platform.notes(index))
        assert all(isinstance(platform.attention_reason(phase, layer), str) for phase in PHASES)

    def test_reserve(self) -> None:
        """Memory for weights is bytes on the device, as many as asked for, that can be written; or None."""
        platform = self.create()
        for size in (0, 1, 4096, 3 << 20):
            block = platform.reserve(size)
            if block is None:
                return
            assert block.dtype == torch.uint8 and block.shape == (size,) and block.is_contiguous()
            assert block.device == platform.device()
            block.fill_(7)
            assert bool((block == 7).all())

    def test_communication_backend(self) -> None:
        """One that torch.distributed knows."""
        if not torch.distributed.is_available():
            self.skip("this torch has no distributed package")
        assert self.create().communication_backend() in torch.distributed.Backend.backend_list


def _oracle(op: str) -> Callable[..., Any]:
    """The reference of the core's ops; what was replaced, in its own dtype, for those of other distributions."""
    return reference.OPS.get(op) or registered()[op].function


def _outcome(function: Callable[..., Any], sample: Sample) -> tuple[Tensor, ...]:
    """Call a function with a copy of the sample; return what it gives, or what it left in its arguments if that is nothing."""
    inputs = tuple(_copy(x) for x in sample)
    given = function(*inputs)
    return tuple(_tensors(inputs)) if given is None else _tuple(given)


def _copy(x: Any) -> Any:
    """Return tensors, in lists too, with memory of their own laid out the same, since an op may write to its arguments."""
    if isinstance(x, list):
        return [_copy(y) for y in x]
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _floating(value: Any) -> tuple[Tensor, ...]:
    """The outputs that can have a gradient."""
    return tuple(x for x in _tuple(value) if x.is_floating_point())


def _leaves(sample: Sample, chosen: set[int]) -> tuple[Sample, list[Tensor]]:
    """Return the sample with gradients asked for the floating-point tensors numbered in `chosen`, and those tensors."""
    inputs, leaves, number = [], [], 0
    for value in sample:
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach()
            if number in chosen:
                value = value.requires_grad_()
                leaves.append(value)
            number += 1
        inputs.append(value)
    return tuple(inputs), leaves


def _close(what: str, mine: Tensor, right: Tensor, tolerance: float) -> None:
    text = f"{what} of {mine.dtype}"
    torch.testing.assert_close(
        mine.double(), right.double(), rtol=tolerance, atol=tolerance, msg=lambda message: f"{text}: {message}"
    )
