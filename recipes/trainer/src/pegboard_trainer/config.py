"""The configuration that every recipe of this loop shares; a recipe subclasses `TrainConfig` to add keys of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pegboard.config import Choice, OptionsSection, PathSection, PluginSection


class Section(BaseModel):
    """A part of the configuration with fixed keys."""

    model_config = ConfigDict(extra="forbid")


class ModelSection(PathSection):
    """The model that is trained."""

    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    dtype: str = Field(default="auto", description="float32, bfloat16, float16, or what the device computes fastest")
    platform: str = Field(default="auto", description="a platform plugin")
    device: int = 0
    attention: str = Field(default="auto", description="an attention plugin")


class RoleSection(Section):
    """The model of a further role. What is left out is as in the role that it is like; a bare string is its path.

    adapter, quantizer: those of this role alone.
    """

    path: str | None = Field(default=None, description="id, folder or file; as in `model` where it is left out")
    revision: str | None = None
    dtype: str | None = None
    platform: str | None = None
    device: int | None = None
    attention: str | None = None
    adapter: Annotated[Choice, PluginSection("adapter")] | None = None
    quantizer: Annotated[Choice, PluginSection("quantizer")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    def complete(self, like: ModelSection) -> ModelSection:
        """Return a whole section, with the values of `like` where this one has none; a revision belongs to its path."""
        own = {k: v for k, v in self.model_dump(exclude={"adapter", "quantizer"}).items() if v is not None}
        base = like.model_dump(exclude={"revision"} if self.path is not None else set())
        return ModelSection.model_validate({**base, **own})


class MixSection(OptionsSection):
    """One source of a mix. Keys that are not listed here are options of the source; a bare string is its path."""

    kind = "source"

    use: str = Field(default="jsonl", description="a source plugin")
    format: Annotated[Choice, PluginSection("transform")] | None = Field(
        default=None, description="a transform plugin; that of `data` when null"
    )
    weight: float | None = Field(default=None, gt=0, description="share of the rows, beside the other weights")


class DataSection(OptionsSection):
    """The data. Keys that are not listed here are options of the source, whose schema checks them."""

    kind = "source"

    path: str | None = None  # type: ignore[assignment]
    mix: list[MixSection] = Field(
        default_factory=list,
        description="several sources in the place of `path`: every row once an epoch, or by `weight`",
    )
    use: str = Field(default="jsonl", description="a source plugin")
    format: Annotated[Choice, PluginSection("transform")] = Field(
        default="chat",
        validate_default=True,
        description="a transform plugin",
    )
    validation: float | str | None = Field(
        default=None, description="a share of the rows (0.05), a number of rows (200), or the path of another file"
    )
    shuffle: bool = Field(
        default=True, description="a new order in every epoch, where the source can be read in any order"
    )
    count: Literal["auto", "exact"] = Field(
        default="auto",
        description="how the steps of an epoch are counted: from a sample where there are many rows, or by reading all",
    )
    cache: str | None = Field(
        default=None, description="a folder in which token ids are kept, by the content of data, tokenizer and format"
    )

    @property
    def choice(self) -> Choice:
        """The choice of the source; without `path`, what it would be for data that are named later."""
        return {**super().choice, "path": self.path or ""}

    @model_validator(mode="after")
    def _one(self) -> DataSection:
        if bool(self.path) == bool(self.mix):
            raise ValueError("give either `path`, or `mix` with path: null")
        return self

    def source(self, path: str | None = None) -> Choice:
        """Return the choice of the source, of another `path` if one is given."""
        return {**self.choice, "path": path or self.path}


class BatchSection(Section):
    """What one forward pass and one optimizer step take."""

    size: int = Field(default=4, ge=1, description="sequences of `length` tokens in one forward pass")
    length: int = Field(default=512, ge=2, description="longest example, in tokens")
    accumulate: int = Field(default=1, ge=1, description="forward passes an optimizer step")
    pack: bool = Field(
        default=True, description="fill size x length tokens with as many examples as fit, instead of `size` examples"
    )
    window: int = Field(default=8, ge=1, description="batches that are filled at the same time while packing")
    overlong: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="what becomes of longer examples"
    )
    ahead: int = Field(default=2, ge=0, description="batches that a thread makes before they are asked for")


class ValidationSection(Section):
    """When the held-out loss is measured; always at the end too."""

    every: int | None = Field(default=None, ge=1, description="steps")
    first: bool = Field(default=True, description="also before the first step")
    batches: int | None = Field(default=None, ge=1, description="at most so many batches")
    metric: str = Field(default="validation/loss", description="what says which step is best")
    greater: bool = Field(default=False, description="whether more of it is better")
    patience: int | None = Field(
        default=None, ge=1, description="measurements in a row without a better one that end the run"
    )
    margin: float = Field(default=0.0, ge=0, description="how much better counts as better")


class CheckpointSection(Section):
    """When step folders are written; always when the run is stopped too."""

    every: int | None = Field(default=None, ge=1, description="steps")
    keep: int | None = Field(default=None, ge=1, description="newest step folders that stay; all when null")
    last: bool = Field(default=True, description="also after the last step")
    minutes: float | None = Field(default=None, gt=0, description="also when so long has passed since the last one")
    keep_best: bool = Field(default=False, description="the best measured step stays too")
    background: bool = Field(default=False, description="write from a copy on the host while the run goes on")


class MeshSection(Section):
    """How the processes of a run divide the work; their number is the product."""

    replicate: int = Field(
        default=1, ge=1, description="groups of processes with all weights each, that see different data"
    )
    shard: int = Field(
        default=1, ge=1, description="processes that see different data and keep a part of every weight (FSDP2)"
    )
    tensor: int = Field(default=1, ge=1, description="processes that compute a part of every layer")
    sequence: bool = Field(
        default=True,
        description="with `tensor`: each process keeps its share of the tokens between the layers that are divided",
    )
    reshard: bool = Field(default=True, description="with `shard`: weights are gathered again for the backward pass")
    offload: bool = Field(default=False, description="with `shard`: weights, gradients and optimizer wait on the host")

    @property
    def processes(self) -> int:
        """How many processes the run needs."""
        return self.replicate * self.shard * self.tensor


class MemorySection(Section):
    """What is computed twice, or kept elsewhere, to take less memory. Values stay the same."""

    recompute: Literal["all", "cheap"] | None = Field(
        default=None,
        description="what layers give is computed again in the backward pass: all of it (`all`), or norms, rotations and gates (`cheap`)",
    )
    every: int = Field(default=1, ge=1, description="of how many layers one is recomputed")
    offload: bool = Field(default=False, description="activations that are kept wait on the host")
    update_in_backward: bool = Field(
        default=False, description="weights are updated while gradients come, which never are there together"
    )
    compile: bool = Field(default=False, description="each layer is compiled by torch.compile")


class RoutingSection(Section):
    """Losses and statistics of the routers of a mixture of experts."""

    balance: Annotated[float, Field(ge=0)] | Literal["config"] = Field(
        default=0.0,
        description="coefficient of the load-balancing loss; `config` for the model's own router_aux_loss_coef",
    )
    z: float = Field(default=0.0, ge=0, description="coefficient of the z loss")
    freeze: bool = Field(default=False, description="routers are not trained")
    experts: bool = Field(default=False, description="the load of each expert is logged too")


class AverageSection(Section):
    """A moving average of the weights, written as `average/` beside `model/` and measured in its place."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    host: bool = Field(default=False, description="it is kept on the host")


class ProfileSection(Section):
    """Steps that are recorded into `profile/`; SIGUSR1 asks for more at any time."""

    first: int | None = Field(default=None, ge=1, description="the first step recorded")
    steps: int = Field(default=1, ge=1)
    memory: bool = Field(default=False, description="the device's memory too")


class TrainConfig(Section):
    """A training run."""

    name: str = Field(default="run", description="what loggers call it")
    output: str = Field(description="run folder; must not exist, unless the run is resumed")
    resume: str | None = Field(
        default=None, description="`auto` (continue in `output` if it has a step), or a run or step folder"
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="of data order, adapter and dropout")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps")
    epochs: float | None = Field(
        default=None, gt=0, description="passes over the data, where `steps` is not given (default 1)"
    )
    clip: float | None = Field(default=1.0, gt=0, description="largest norm of the gradient")
    log_every: int = Field(default=1, ge=1, description="steps from one line of metrics to the next")
    peak_tflops: Annotated[float, Field(gt=0)] | Literal["measured"] | None = Field(
        default="measured",
        description="what mfu is a share of: 10^12 operations a second of one device, or what its matrix products reach; null for no mfu",
    )
    model: ModelSection
    adapter: Annotated[Choice, PluginSection("adapter")] | None = None
    quantizer: Annotated[Choice, PluginSection("quantizer")] | None = None
    data: DataSection
    batch: BatchSection = Field(default_factory=BatchSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    memory: MemorySection = Field(default_factory=MemorySection)
    freeze: list[str] = Field(
        default_factory=list, description="patterns of parameters that are not trained, such as model.embed_tokens.*"
    )
    routing: RoutingSection = Field(default_factory=RoutingSection)
    noise: float | None = Field(default=None, gt=0, description="NEFTune's alpha: noise on the embeddings")
    average: AverageSection | None = None
    profile: ProfileSection = Field(default_factory=ProfileSection)
    deterministic: bool = Field(default=False, description="only operations that always give the same")
    optimizer: Annotated[Choice, PluginSection("optimizer")]
    schedule: Annotated[Choice, PluginSection("schedule")] = Field(
        default="constant",
        validate_default=True,
    )
    validation: ValidationSection = Field(default_factory=ValidationSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    loggers: list[Annotated[Choice, PluginSection("logger")]] = Field(default_factory=list)

    def identity(self, ranks: int = 1) -> dict[str, Any]:
        """Return what a resumed run must share with the one that it continues: all that decides a step but the paths of model
        and data, which may have moved, and the number of steps, which may be raised.

        ranks: processes that see different data; only the batches of a step over all of them count.
        """
        shared = {"seed", "clip", "adapter", "quantizer", "objective", "batch", "optimizer", "schedule", "routing"}
        outside: Any = {"path": True, "cache": True, "mix": {"__all__": {"path"}}}
        data = self.data.model_dump(mode="json", exclude=outside)
        found = self.model_dump(mode="json", include=shared)
        found["batch"]["accumulate"] *= ranks
        del found["batch"]["ahead"]
        return {**found, "data": data}
