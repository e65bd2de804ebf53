from __future__ import annotations

from pegboard_evaluate.harness import figures, sampling
from pegboard_evaluate.report import lines


def test_standard_errors_stand_beside_their_figures() -> None:
    results = {
        "results": {
            "toy": {"alias": "toy", "acc,none": 0.5, "acc_stderr,none": 0.125, "em,flex": 1.0, "em_stderr,flex": "N/A"}
        }
    }
    told = figures(results)
    assert told == {"toy": {"acc": 0.5, "acc_stderr": 0.125, "em,flex": 1.0}}
    assert lines({**told, "book.txt": {"tokens": 12345}}) == [
        "toy       acc      0.5000 ± 0.1250",
        "          em,flex  1.0000",
        "book.txt  tokens   12,345",
    ]


def test_settings_of_a_task_become_sampling() -> None:
    assert sampling({"until": "\n", "temperature": 0.7}).temperature == 0
    params = sampling({"until": ["a", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 9})
    assert (params.stop, params.temperature, params.top_p, params.max_tokens) == (("a",), 0.7, 0.9, 9)
    assert sampling({}).max_tokens == 256
