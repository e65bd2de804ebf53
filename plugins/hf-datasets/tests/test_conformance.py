from __future__ import annotations

from pegboard_hf_datasets.plugin import SOURCE, STREAM
from pegboard_sdk.conformance import PluginSuite


class TestHub(PluginSuite):
    spec = SOURCE


class TestStream(PluginSuite):
    spec = STREAM
