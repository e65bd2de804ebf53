"""Front doors of the engine, its executors and its commands."""

from pegboard.plugins.spec import PluginSpec

SPEC = PluginSpec(
    kind="engine", target="pegboard_engine.engine:PagedEngine", schema="pegboard_engine.options:EngineOptions"
)
UNIPROC = PluginSpec(kind="executor", target="pegboard_engine.executor:UniprocExecutor")
MULTIPROC = PluginSpec(
    kind="executor",
    target="pegboard_engine.multiproc.executor:MultiprocExecutor",
    schema="pegboard_engine.multiproc.options:MultiprocOptions",
)
DRAFT = PluginSpec(
    kind="speculator", target="pegboard_engine.draft:DraftSpeculator", schema="pegboard_engine.draft:DraftOptions"
)
GENERATE = PluginSpec(kind="command", target="pegboard_engine.commands.generate:generate")
CHAT = PluginSpec(kind="command", target="pegboard_engine.commands.chat:chat")
BENCH_OFFLINE = PluginSpec(kind="command", target="pegboard_engine.commands.bench:offline")
