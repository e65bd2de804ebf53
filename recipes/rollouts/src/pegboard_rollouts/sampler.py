"""Answers of the model that is trained, by an engine in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pegboard.config import Choice
from pegboard.errors import PegboardError
from pegboard.interfaces.engine import Engine, RequestOptions
from pegboard.types import SamplingParams
from pegboard_rollouts.weights import GatheredWeights, SharedWeights, served_weights
from pegboard_trainer.roles import ModelRole
from pegboard_trainer.setting import Setting
from pegboard_trainer.world import World

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
    """An engine over a model that is trained, in each process.

    It computes with the very parameters that the optimizer changes, or where a process has only parts of them, with a whole copy. That
    is brought up to date, and what an engine derives from weights is refreshed, before each call of `answers`; keys and values of
    older weights are not found again.
    """

    def __init__(
        self,
        weights: SharedWeights | GatheredWeights,
        tokenizer: Tokenizer,
        registry: Registry,
        engine: Choice,
        world: World | None = None,
    ) -> None:
        self._weights, self._world = weights, world or World()
        self.engine: Engine = registry.create("engine", engine)
        self.engine.load(weights.built, tokenizer, registry)
        self._version = 0

    @classmethod
    def of(cls, setting: Setting, role: ModelRole, engine: Choice) -> PolicySampler:
        """Return one for the first role of a run."""
        weights = served_weights(role, setting.placement)
        return cls(weights, setting.tokenizer, setting.registry, engine, setting.world)

    def answers(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[Answer]]:
        """Return `n` answers to each prompt. The model is in evaluation mode meanwhile, so that no dropout disturbs it.

        All processes of a run ask at the same place; those of a tensor group for the same prompts, which they share. Raises
        PegboardError for a request that fails.
        """
        self._version += 1
        model, rank, size = self._weights.built.model, self._world.tensor_rank, self._world.tensor_size
        training = model.training
        model.eval()
        try:
            self._weights.refresh()
            self.engine.update_weights(self._version)
            self.engine.reset_cache()
            mine = self._world.together(lambda: self._run(prompts[rank::size], params[rank::size]))
        finally:
            model.train(training)
        parts = self._world.tensor_parts(mine)
        return [parts[number % size][number // size] for number in range(len(prompts))]

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
