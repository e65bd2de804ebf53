"""`peg doctor` finds what is wrong, whatever the plugins do."""

from __future__ import annotations

import pytest

# However slow the machine is, nothing hangs that does not say so.
pytestmark = pytest.mark.usefixtures("hang")

DOOR = "from pegboard.plugins.spec import PluginSpec, Probe\n"
PLATFORM = """
from pegboard.interfaces.platform import DeviceInfo, Platform
class Fake(Platform):
    def devices(self):
        {devices}
    def device(self, index=0):
        return "cpu"
    def capabilities(self, index=0):
        return frozenset(["fp8", "bf16"])
    def default_dtype(self, index=0):
        return "torch.bfloat16"
    def attention_preference(self, phase, spec):
        return ("loops",)
    def synchronize(self, index=0):
        pass
def probe():
    {probe}
S = PluginSpec(kind="platform", target=__name__ + ":Fake", probe=__name__ + ":probe")
"""
ONE = "return [DeviceInfo(0, 'Big', 2**30, 2**30)]"
THERE = "return Probe(True, True, 'here')"
WATCH = """
from pegboard.plugins.hooks import hookimpl
class Watch:
    @hookimpl
    def doctor(self):
        {body}
S = PluginSpec(kind="hooks", target=__name__ + ":Watch")
"""


@pytest.fixture
def add(site):
    def install(kind: str, name: str, source: str) -> None:
        site.add(f"{name}-peg", {(kind, name): f"doctored_{name}:S"}, {f"doctored_{name}": DOOR + source})

    install("platform", "fake", PLATFORM.format(devices=ONE, probe=THERE))
    return install


def test_a_healthy_installation(add, peg) -> None:
    add("hooks", "watch", WATCH.format(body="return ['the garden is in order']"))
    add("platform", "other", PLATFORM.format(devices="1/0", probe="return Probe(False, False, 'no driver')"))
    said = peg("doctor")
    assert (said.status, said.err) == (0, "")
    assert "pegboard 0.1.0" in said.out
    assert "torch 2." in said.out
    assert "  fake:0 Big, 1.0 of 1.0 GiB available\n    bf16, fp8; dtype auto is bfloat16\n    attention: " in said.out
    assert "other: absent (no driver)" in said.out
    assert "fake-peg 1.0: platform fake" in said.out
    assert "observers say\n  the garden is in order\n" in said.out
    assert "nothing is wrong" in said.out


@pytest.mark.parametrize(
    ("kind", "source", "problem", "fix"),
    [
        ("adapter", "1/0", "adapter bad-peg:bad failed: its front door", "--force-reinstall bad-peg"),
        ("adapter", "import os; os._exit(4)", "adapter bad-peg:bad crashes: the process", "--force-reinstall bad-peg"),
        ("adapter", "HANG", "adapter bad-peg:bad hangs: it did not", "--force-reinstall bad"),
        (
            "adapter",
            "S = PluginSpec(kind='adapter', target='m:T', interface=9)",
            "adapter bad-peg:bad is incompatible: it follows version 9",
            "pip install --upgrade pegboard bad-peg",
        ),
        ("hooks", WATCH.format(body="1/0"), "hooks bad-peg:bad failed: observer bad-peg:bad raised", "bad-peg"),
        (
            "platform",
            PLATFORM.format(devices="return []", probe="return Probe(True, False, 'driver too old')"),
            "platform bad-peg:bad failed: it is present but not usable: driver too old",
            "bad-peg",
        ),
        ("platform", PLATFORM.format(devices="1/0", probe=THERE), "bad-peg:bad failed: ZeroDivisionError", "bad-peg"),
        ("platform", PLATFORM.format(devices="import os; os.abort()", probe=THERE), "bad crashes", "bad-peg"),
    ],
)
def test_what_is_wrong_and_how_to_mend_it(add, peg, hang, kind: str, source: str, problem: str, fix: str) -> None:
    add(kind, "bad", hang if source == "HANG" else source)
    said = peg("doctor", "--timeout", "0.5")
    assert said.status == 2
    wrong = said.out.partition("\nwrong\n")[2]
    assert problem in wrong
    assert fix in wrong.partition("fix: ")[2]
    assert "found 1 problem\n" in said.err
    assert "fake:0 Big" in said.out


def test_rivals_and_lists(add, site, peg, monkeypatch) -> None:
    source = DOOR + "S = PluginSpec(kind='adapter', target='m:T')"
    site.add("one-peg", {("adapter", "same"): "same_one:S"}, {"same_one": source})
    site.add("two-peg", {("adapter", "same"): "same_two:S"}, {"same_two": source})
    site.add("off-peg", {("adapter", "off"): "same_off:S"}, {"same_off": "1/0"})
    monkeypatch.setenv("PEGBOARD_DISABLE_PLUGINS", "off,tpyo")
    said = peg("doctor")
    assert said.status == 2
    assert "adapter one-peg:same is not the only one of its name: adapter 'same' is offered by" in said.out
    assert "fix: name it in full (two-peg:same)" in said.out
    assert "names 'tpyo', which is no installed plugin" in said.out
    assert "off-peg 1.0: adapter off (blocked)" in said.out
    assert "found 3 problems" in said.err


def test_nothing_to_compute_on(site, peg) -> None:
    source = DOOR + PLATFORM.format(devices="1/0", probe="return Probe(False, False, 'no driver')")
    site.add("other-peg", {("platform", "other"): "doctored_other:S"}, {"doctored_other": source})
    said = peg("doctor")
    assert said.status == 2
    assert "other: absent (no driver)" in said.out
    assert "no platform plugin has a device to compute on\n    fix: pip install pegboard-cpu" in said.out


def test_nothing_is_installed(site, peg, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [str(site.folder)])
    said = peg("doctor")
    assert said.status == 2
    assert "devices\n  none\nplugins\n  none\n" in said.out
    assert "pegboard runs without being installed" in said.out
