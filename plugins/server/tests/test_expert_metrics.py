from __future__ import annotations

from pegboard.interfaces.engine import EngineStats
from pegboard_server.metrics import Metrics


def test_the_load_of_experts() -> None:
    lines = Metrics().text(EngineStats(expert_tokens=[[3, 1, 0], [2, 2, 4]])).splitlines()
    assert [line for line in lines if line.startswith("pegboard_expert")] == [
        'pegboard_expert_tokens_total{expert="0"} 5',
        'pegboard_expert_tokens_total{expert="1"} 3',
        'pegboard_expert_tokens_total{expert="2"} 4',
        'pegboard_expert_load_max_ratio{layer="0"} 2.25',
        'pegboard_expert_load_max_ratio{layer="1"} 1.5',
    ]
    assert "pegboard_expert" not in Metrics().text(EngineStats())
