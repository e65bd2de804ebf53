"""Answers of the model that is trained, by an engine in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pegboard.build import BuiltModel
from pegboard.config import Choice
from pegboard.errors import ConfigError, PegboardError
from pegboard.interfaces.engine import Engine, RequestOptions
from pegboard.types import SamplingParams
from pegboard_trainer.config import MeshSection

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer
    from pegboard.plugins.load import Registry


@dataclass(frozen=True, slots=True)
class Answer:
    """ids: of the answer, the token that ended it included. logps: log p of each at temperature 1, as it was sampled.

    text: without special tokens. finished: whether it came to its end instead of being cut.
    """

    ids: list[int]
    text: str
    logps: list[float]
    finished: bool


class PolicySampler:
    """An engine over a model that is trained. It computes with the very parameters that the optimizer changes.

    What an engine derives from weights is refreshed before each call of `answers`, and keys and values of older weights are not
    found again.
    """

    def __init__(self, built: BuiltModel, tokenizer: Tokenizer, registry: Registry, engine: Choice) -> None:
        self._model = built.model
        self.engine: Engine = registry.create("engine", engine)
        self.engine.load(built, tokenizer, registry)
        self._version = 0

    def answers(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[Answer]]:
        """Return `n` answers to each prompt. The model is in evaluation mode meanwhile, so that no dropout disturbs it.

        Raises PegboardError for a request that fails.
        """
        self._version += 1
        training = self._model.training
        self._model.eval()
        try:
            self.engine.update_weights(self._version)
            self.engine.reset_cache()
            return self._run(prompts, params)
        finally:
            self._model.train(training)

    def close(self) -> None:
        """Free the engine's cache."""
        self.engine.close()

    def _run(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[Answer]]:
        found: list[dict[int, Answer]] = [{} for _ in prompts]
        names = [f"rollout-{self._version}-{number}" for number in range(len(prompts))]
        places = {name: number for number, name in enumerate(names)}
        try:
            for name, prompt, one in zip(names, prompts, params, strict=True):
                self.engine.add_request(name, list(prompt), one, RequestOptions(whole=True))
            left = sum(one.n for one in params)
            while left:
                for output in self.engine.step():
                    if output.finish_reason not in ("stop", "length"):
                        raise PegboardError(
                            f"an answer of the rollout failed: {output.error or output.finish_reason}",
                            fix="look at the log",
                        )
                    logps = [entry.logprob for entry in output.logprobs or ()]
                    answer = Answer(list(output.token_ids), output.text, logps, output.finish_reason == "stop")
                    found[places[output.request_id]][output.index] = answer
                    left -= 1
        except BaseException:
            for name in names:
                self.engine.abort(name)
            raise
        return [[answers[index] for index in sorted(answers)] for answers in found]


def check_whole(mesh: MeshSection) -> None:
    """Raise ConfigError where a process does not hold all weights, so that no engine can compute with them."""
    if mesh.shard > 1 or mesh.tensor > 1:
        raise ConfigError(
            f"rollouts need all weights in each process, mesh.shard is {mesh.shard} and mesh.tensor {mesh.tensor}",
            fix="use mesh.replicate for several processes",
        )
