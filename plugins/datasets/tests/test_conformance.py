"""The front doors, with the suite of every plugin."""

from __future__ import annotations

from pegboard_datasets import plugin
from pegboard_sdk.conformance import PluginSuite


class TestJsonl(PluginSuite):
    spec = plugin.JSONL


class TestJson(PluginSuite):
    spec = plugin.JSON


class TestCsv(PluginSuite):
    spec = plugin.CSV


class TestText(PluginSuite):
    spec = plugin.TEXT


class TestChat(PluginSuite):
    spec = plugin.CHAT


class TestShareGpt(PluginSuite):
    spec = plugin.SHAREGPT


class TestInstruct(PluginSuite):
    spec = plugin.INSTRUCT


class TestPreference(PluginSuite):
    spec = plugin.PREFERENCE


class TestLabels(PluginSuite):
    spec = plugin.LABELS


class TestPrompt(PluginSuite):
    spec = plugin.PROMPT


class TestPlain(PluginSuite):
    spec = plugin.PLAIN
