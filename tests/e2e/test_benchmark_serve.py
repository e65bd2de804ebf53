"""benchmarks/serve.py runs as it stands, on a shape that the host has time for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(BENCHMARKS)

    def main(*arguments: str) -> list[str]:
        import serve  # type: ignore[import-not-found]

        monkeypatch.setattr(sys, "argv", ["serve.py", "tiny", "--platform", "cpu", "--small", *arguments])
        serve.main()
        return capsys.readouterr().out.splitlines()

    return main


def test_the_table_has_the_workloads(run) -> None:  # type: ignore[no-untyped-def]
    from serve_workloads import WORKLOADS, shrunk  # type: ignore[import-not-found]

    rows = run("--repeats", "1", "--workloads", "single,shared")[-3:]
    assert [row.split("  ")[0] for row in rows] == ["first token", "single", "shared"]
    assert all(float(row[14:25]) > 0 for row in rows)
    assert [len(make(0)) for make in WORKLOADS.values()] == [256, 1, 64, 256, 32]
    half = [prompt[:1024] for prompt, _ in WORKLOADS["prefill"](3)]
    assert half == [prompt for prompt, _ in WORKLOADS["batch64"](3)[::2]], "what stands in the documentation"
    assert {len(prompt) for prompt, _ in WORKLOADS["shared"](3)} == {2080}
    assert len(shrunk(WORKLOADS["mixed"](3))) == 5


def test_the_profile_tells_where_a_step_goes(run) -> None:  # type: ignore[no-untyped-def]
    text = "\n".join(run("--profile", "1,2"))
    for part in ("step: median", "schedule", "runner.start", "wait", "read"):
        assert part in text
