"""How long starting up takes: `python benchmarks/startup.py [--runs N] [--json]`.

Wall time of whole processes, in milliseconds, of which the least and the median are told: the least is what the code
costs, the median what a user waits for. The interpreter alone stands first; `import pegboard` is timed inside.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

IMPORT = "import time; start = time.perf_counter(); import pegboard; print((time.perf_counter() - start) * 1e3)"
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python": (["-c", ""], None),
    "peg --help": (["-m", "pegboard", "--help"], 250),
    "peg plugins list": (["-m", "pegboard", "plugins", "list"], 250),
    "peg plugins show": (["-m", "pegboard", "plugins", "show", "--kind", "platform", "cpu"], None),
}


def wall(arguments: list[str]) -> float:
    """Return the milliseconds that a fresh interpreter takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1e3


def measure(runs: int) -> list[dict[str, object]]:
    """Return a row for each thing that is timed: what, least, median, and the budget of the least where there is one."""
    told = [subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True) for _ in range(runs)]
    timed = {"import pegboard": ([float(done.stdout) for done in told], 50.0)}
    for name, (arguments, budget) in COMMANDS.items():
        wall(arguments)
        timed[name] = [wall(arguments) for _ in range(runs)], budget  # type: ignore[assignment]
    return [
        {"what": name, "least": round(min(times), 1), "median": round(statistics.median(times), 1), "budget": budget}
        for name, (times, budget) in timed.items()
    ]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = measure(arguments.runs)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'milliseconds':18} {'least':>8} {'median':>8} {'budget':>8}")
    for row in rows:
        print(f"{row['what']:18} {row['least']:>8} {row['median']:>8} {row['budget'] or '':>8}")


if __name__ == "__main__":
    main()
