"""The one table of plugin kinds. A kind exists only if it stands here."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "pegboard."


@dataclass(frozen=True, slots=True)
class Group:
    """An entry-point group.

    `kind`, the interface that its plugins implement ("module:attribute"), its version, and one line of help.
    """

    kind: str
    interface: str
    version: int
    summary: str

    @property
    def entry_point_group(self) -> str:
        """Name of the entry-point group in a distribution's metadata."""
        return PREFIX + self.kind


def _group(kind: str, attribute: str, summary: str, version: int = 1) -> Group:
    return Group(kind, f"pegboard.interfaces.{kind}:{attribute}", version, summary)


GROUPS: dict[str, Group] = {
    group.kind: group
    for group in (
        _group("platform", "Platform", "a kind of hardware: devices, memory, capabilities, kernels, graphs"),
        _group("attention", "AttentionBackend", "attention over a ragged batch, with or without a paged cache"),
        _group("model", "ModelFamily", "a family of model architectures"),
        _group("tokenizer", "TokenizerLoader", "text to token ids and back, chat templates"),
        _group("format", "ModelFormat", "files that hold a model: reading, and where possible writing"),
        _group("quantizer", "Quantizer", "weights in fewer bits"),
        _group("adapter", "Adapter", "trainable additions to a frozen model"),
        _group("objective", "Objective", "what training minimises"),
        _group("source", "Source", "where training rows come from"),
        _group("transform", "Transform", "training rows to token ids and loss masks"),
        _group("optimizer", "OptimizerFactory", "parameter updates"),
        _group("schedule", "Schedule", "learning rate over steps"),
        _group("reward", "Reward", "how good an answer of the trained model is"),
        _group("recipe", "Recipe", "a training run"),
        _group("launcher", "Launcher", "one run in several processes"),
        _group("logger", "Logger", "where metrics of a run go"),
        _group("search", "Search", "which settings a sweep tries next"),
        _group("engine", "Engine", "continuous generation for many requests"),
        _group("grammar", "GrammarBackend", "outputs that must match a schema, an expression or a grammar"),
        _group("logits_processor", "LogitsProcessor", "a change to the logits before a token is chosen"),
        _group("speculator", "Speculator", "guesses at the next tokens, checked together"),
        _group("parser", "ParserFactory", "answers told apart into content, reasoning and tool calls"),
        _group("executor", "Executor", "running one step of a model, here or in workers"),
        _group("command", "Command", "a sub-command of peg; a dotted name makes a group"),
        _group("hooks", "Hooks", "observers of a run: pluggy hook implementations"),
    )
}
