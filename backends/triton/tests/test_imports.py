"""What serving waits for at its start."""

from __future__ import annotations

import subprocess
import sys

SERVES = """
import sys, torch
from pegboard_triton.table import replacements
import pegboard_engine.runner, pegboard_triton.attention.backend
assert replacements("decode", torch.bfloat16)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_serving_imports_no_compiler_of_torch() -> None:
    """It takes longer than all kernels together."""
    done = subprocess.run([sys.executable, "-c", SERVES], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
