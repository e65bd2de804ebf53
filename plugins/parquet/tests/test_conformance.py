from __future__ import annotations

from pegboard_parquet.plugin import SOURCE
from pegboard_sdk.conformance import PluginSuite


class TestParquet(PluginSuite):
    spec = SOURCE
