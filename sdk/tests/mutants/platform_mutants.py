"""Platforms that are broken, each in one way."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pegboard_acme import kernels
from pegboard_acme.platform import AcmePlatform

from pegboard.interfaces.platform import DeviceInfo
from pegboard_sdk.conformance import PlatformSuite


class Mutant(PlatformSuite):
    __test__ = False
    caught_by: ClassVar[tuple[str, ...]] = ()
    broken: ClassVar[type[AcmePlatform]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = True

    def create(self, **options: Any) -> AcmePlatform:
        return self.broken()


class TestCountsFromOne(Mutant):
    caught_by = ("test_devices_are_listed",)

    class broken(AcmePlatform):
        def devices(self):
            return [DeviceInfo(1, "one", 1 << 33, 1 << 32)]


class TestNoDevices(Mutant):
    caught_by = ("test_devices_are_listed",)

    class broken(AcmePlatform):
        def devices(self):
            return []


class TestGigabytes(Mutant):
    caught_by = ("test_memory_is_within_bounds",)

    class broken(AcmePlatform):
        def devices(self):
            return [DeviceInfo(0, "one", 64, 32)]


class TestMoreFreeThanThere(Mutant):
    caught_by = ("test_memory_is_within_bounds",)

    class broken(AcmePlatform):
        def devices(self):
            return [DeviceInfo(0, "one", 1 << 32, 1 << 33)]


class TestAbstractDevice(Mutant):
    """A device without values, streams, random numbers or memory."""

    caught_by = (
        "test_devices_compute",
        "test_streams_and_events",
        "test_random_numbers_repeat",
        "test_copies_between_devices",
        "test_memory_that_is_taken_is_missing",
    )

    class broken(AcmePlatform):
        def devices(self):
            return [DeviceInfo(index, "nothing", 1 << 33, 1 << 32) for index in range(2)]

        def device(self, index=0):
            return torch.device("meta")


class TestClaimsPinnedMemory(Mutant):
    caught_by = ("test_copies_from_pinned_memory",)

    class broken(AcmePlatform):
        def capabilities(self, index=0):
            return frozenset({"pinned"})


class TestNotesOfSeveralLines(Mutant):
    caught_by = ("test_notes",)

    class broken(AcmePlatform):
        def notes(self, index=0):
            return ["compiler 3\nfor all cards"]


class TestAnyDevice(Mutant):
    caught_by = ("test_absent_device_is_named",)

    class broken(AcmePlatform):
        def device(self, index=0):
            return torch.device("cpu")


class TestOtherWord(Mutant):
    caught_by = ("test_capabilities_are_known_words",)

    class broken(AcmePlatform):
        def capabilities(self, index=0):
            return frozenset({"bfloat16"})


class TestSlowDefault(Mutant):
    caught_by = ("test_default_dtype",)

    class broken(AcmePlatform):
        def default_dtype(self, index=0):
            return torch.bfloat16


class TestIntegerDefault(Mutant):
    caught_by = ("test_default_dtype",)

    class broken(AcmePlatform):
        def default_dtype(self, index=0):
            return torch.int32


class TestNoPreference(Mutant):
    caught_by = ("test_attention_preference",)

    class broken(AcmePlatform):
        def attention_preference(self, phase, spec):
            return () if phase == "decode" else ("sdpa",)


class TestUnknownOp(Mutant):
    caught_by = ("test_kernels_replace_known_ops",)

    class broken(AcmePlatform):
        def kernels(self, phase, dtype, index=0):
            return {"rms_normal": kernels.rms_norm}


class Replaced(AcmePlatform):
    """Replaces rms_norm with `kernel`."""

    def kernels(self, phase, dtype, index=0):
        return {"rms_norm": self.kernel}


class TestForgetsEpsilon(Mutant):
    caught_by = ("test_kernels_equal_the_reference",)

    class broken(Replaced):
        def kernel(self, x, weight, eps):
            return kernels.rms_norm(x, weight, 0.01)


class TestWidens(Mutant):
    caught_by = ("test_kernels_equal_the_reference",)

    class broken(Replaced):
        def kernel(self, x, weight, eps):
            return kernels.rms_norm(x, weight, eps).double()


class TestNoGradients(Mutant):
    caught_by = ("test_training_kernels_have_right_gradients",)

    class broken(Replaced):
        @torch.no_grad()
        def kernel(self, x, weight, eps):
            return kernels.rms_norm(x, weight, eps)


class TestHalfAGradient(Mutant):
    caught_by = ("test_training_kernels_have_right_gradients",)

    class broken(Replaced):
        def kernel(self, x, weight, eps):
            scale = torch.rsqrt(x.detach().double().square().mean(-1, keepdim=True) + eps).to(x.dtype)
            return x * scale * weight


class TestConfiguresOnce(Mutant):
    caught_by = ("test_configure_can_be_repeated",)

    class broken(AcmePlatform):
        calls: ClassVar[list[int]] = []

        def configure(self, *, threads=None):
            self.calls.append(1)
            if len(self.calls) > 1:
                raise RuntimeError("threads are set already")


class _Nothing:
    def replay(self):
        pass


class TestEmptyGraph(Mutant):
    caught_by = ("test_graphs",)

    class broken(AcmePlatform):
        def capabilities(self, index=0):
            return frozenset({"graphs"})

        def capture(self, work, index=0, memory=None):
            work()
            return _Nothing()


class TestCapturesWhatItCannot(Mutant):
    caught_by = ("test_graphs",)

    class broken(AcmePlatform):
        def capture(self, work, index=0, memory=None):
            return _Nothing()


class _Again:
    def __init__(self, work):
        self.replay = work


class TestSharedMemoryIsOverwritten(Mutant):
    caught_by = ("test_graphs_share_their_memory",)

    class broken(AcmePlatform):
        def capabilities(self, index=0):
            return frozenset({"graphs"})

        def capture(self, work, index=0, memory=None):
            work()
            return _Again(work) if memory is None else _Nothing()

        def graph_memory(self, index=0):
            return object()


class TestReservesTooLittle(Mutant):
    caught_by = ("test_reserve",)

    class broken(AcmePlatform):
        def reserve(self, num_bytes, index=0):
            return torch.zeros(num_bytes // 2, dtype=torch.uint8)


class TestOtherBackend(Mutant):
    caught_by = ("test_communication_backend",)

    class broken(AcmePlatform):
        def communication_backend(self):
            return "glue"
