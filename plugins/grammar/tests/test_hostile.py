"""What a stranger may send: refused in words or compiled and walked, in bounded time and memory, and nothing breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("json_schema", "regex", "choice", "ebnf")

CHILD = """
import json, random, resource, sys, threading
sys.path.insert(0, sys.argv[1])
# Many times what is needed: a bound that is missing is missed by orders of magnitude.
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from hostile import ALL
from pegboard.errors import DataError
from pegboard.types import GrammarSpec
from pegboard_grammar.backend import LlguidanceBackend
from pegboard_grammar.options import Options
from pegboard_sdk.conformance.grammar import random_answer
from pegboard_sdk.toys.tokenizer import TinyTokenizer

tokenizer, said = TinyTokenizer(), {}
backend = LlguidanceBackend(Options(seconds=500))
backend.load(tokenizer, 300)

def walk():
    for name, value in ALL[sys.argv[2]].items():
        try:
            matcher = backend.compile(GrammarSpec(sys.argv[2], value)).matcher()
            random_answer(matcher, tokenizer, 300, random.Random(0), most=40)
            said[name] = "ok"
        except DataError as error:
            said[name] = str(error)

threading.stack_size(512 << 10)  # as small as a server's threads may be
thread = threading.Thread(target=walk)
thread.start()
thread.join()
print(json.dumps({"said": said, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_grammars(kind: str) -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    here = Path(__file__).parent
    spec = spec_from_file_location("hostile", here / "hostile.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(hostile := module_from_spec(spec))
    done = subprocess.run([sys.executable, "-c", CHILD, str(here), kind], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    answer = json.loads(done.stdout)
    assert answer["said"].keys() == hostile.ALL[kind].keys()
    for name, said in answer["said"].items():
        assert len(said) < 600 and "panic" not in said, f"{name}: {said}"
        assert "few enough" not in name or said == "ok", f"{name}: {said}"
    assert answer["megabytes"] < 1500
