"""Front doors of the parsers."""

from pegboard.plugins.spec import PluginSpec

HERMES = PluginSpec(
    kind="parser",
    target="pegboard_parsers.hermes:Hermes",
    capabilities={"parses": "tools", "templates": ["<tool_call>"]},
)
LLAMA = PluginSpec(
    kind="parser",
    target="pegboard_parsers.llama:Llama",
    capabilities={"parses": "tools", "templates": ['{"name": function name, "parameters":', "<|python_tag|>"]},
)
MISTRAL = PluginSpec(
    kind="parser",
    target="pegboard_parsers.mistral:Mistral",
    capabilities={"parses": "tools", "templates": ["[TOOL_CALLS]"]},
)
PYTHONIC = PluginSpec(
    kind="parser",
    target="pegboard_parsers.pythonic:Pythonic",
    capabilities={"parses": "tools", "templates": ["[func_name1(params_name1=params_value1", "<|python_start|>"]},
    # Templates of this format may speak of the markers of `llama` too.
    priority=1,
)
THINK = PluginSpec(
    kind="parser",
    target="pegboard_parsers.think:Think",
    capabilities={"parses": "reasoning", "templates": ["</think>"]},
)
THINK_OPENED = PluginSpec(
    kind="parser",
    target="pegboard_parsers.think:ThinkOpened",
    # Templates that begin every answer with the marker, as their source spells it.
    capabilities={"parses": "reasoning", "templates": ["<｜Assistant｜><think>", "assistant\\n<think>\\n"]},
    priority=1,
)
