"""What a training run is made of, as frozen dataclasses: the YAML file, the command line and `train` share them."""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxsae.config import register
from jaxsae.errors import ConfigError
from jaxsae.io.checkpoint import Retention
from jaxsae.optim import halved
from jaxsae.parallel import MeshConfig
from jaxsae.recipes import Recipe, RecipeConfig

#: How many there are: jax keeps 32 bits of a seed, so that a larger one would repeat the weights of a smaller one.
SEEDS = 2**32


def _positive(where: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"config key '{where}{name}' must be above 0, found {value}")


def check_seed(where: str, seed: float) -> None:
    """Refuses a seed that jax or numpy would not take, or of which jax would drop the upper half.

    Raises:
        ConfigError: it is no whole number from 0 to 2^32 - 1.
    """
    if not 0 <= seed < SEEDS or seed != int(seed):
        raise ConfigError(f"{where} must be a whole number from 0 to {SEEDS - 1}, found {seed}")


@register("train.checkpoint")
@dataclass(frozen=True)
class CheckpointPolicy:
    """When to save, and what to keep.

    Attributes:
        every_steps: steps between checkpoints; the last step is always saved.
        latest: how many of the newest stay; with fewer than two, a damaged one has nothing behind it.
        landmark_steps: keep also every checkpoint whose step is a multiple of this, for good; None for none.
    """

    every_steps: int = 1000
    latest: int = 2
    landmark_steps: int | None = None

    def __post_init__(self) -> None:
        _positive("checkpoint.", every_steps=self.every_steps, latest=self.latest, landmark_steps=self.landmark_steps)

    @property
    def retention(self) -> Retention:
        return Retention(self.latest, self.landmark_steps)


@register("train.log")
@dataclass(frozen=True)
class LogPolicy:
    """What is written about a run while it goes on; `log.jsonl` always is.

    Attributes:
        every_steps: steps between records.  Metrics reach the host one record late, so that nothing waits for them.
        progress: show a progress bar (plain lines where the output is no terminal).
        tensorboard: write event files into `<output>/tensorboard`; needs tensorboardX.
        wandb_project: send the records to this Weights & Biases project; needs wandb.
    """

    every_steps: int = 50
    progress: bool = True
    tensorboard: bool = False
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        _positive("log.", every_steps=self.every_steps)


@register("train.evaluate")
@dataclass(frozen=True)
class EvaluatePolicy:
    """How the run is watched on rows it never trains on.

    Attributes:
        every_steps: steps between evaluations; the last step is always evaluated.
        batches: held-out batches per evaluation, always the same ones; 0 for no evaluation.
    """

    every_steps: int = 500
    batches: int = 4

    def __post_init__(self) -> None:
        _positive("evaluate.", every_steps=self.every_steps)
        if self.batches < 0:
            raise ConfigError(f"config key 'evaluate.batches' must be 0 or more, found {self.batches}")


@register("train.watch")
@dataclass(frozen=True)
class WatchPolicy:
    """What is looked out for while a run goes on, and told as an event.

    Attributes:
        stall_share: share of the time between two records that may be lost to waiting for data, or by the host between
            steps, before that is told.
        spike_factor: a recorded loss above so many times the median of the 20 before it is a spike.
        on_spike: "note" it, or "stop" with the last good checkpoint (not in a sweep, where spikes of each run are
            noted).  A loss that is not finite always stops a run (of a sweep: that member).
        trace_step: record a profiler trace from this step on into `<output>/profile`; None for none.
        trace_steps: steps in the trace.
    """

    stall_share: float = 0.25
    spike_factor: float = 5.0
    on_spike: Literal["note", "stop"] = "note"
    trace_step: int | None = None
    trace_steps: int = 3

    def __post_init__(self) -> None:
        values = {n: getattr(self, n) for n in ("stall_share", "spike_factor", "trace_step", "trace_steps")}
        _positive("watch.", **values)


@register("train")
@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        recipe: the method and its hyper-parameters, e.g. `type: recipe.topk`; `d_in` may be left to the cache.
        cache: activation cache to train on (made by `jaxsae harvest`): its folder, or its URL.
        output: run directory, or its URL (gs://, s3://); a run that is already in it is continued.
        hook_name: site to train on; may be left out if the cache holds only one.
        training_tokens: activations seen in all, rounded down to whole batches.
        train_batch_size_tokens: activations per step.
        seed: of the initial weights and of the order of the data.
        moments: dtype of the optimiser's moments; bfloat16 rounds both stochastically (`optim.AdamBf16`), in half the
            memory.
        sweep: many runs as one program, on the same batches: entries such as lr=1e-4,3e-4 or k=16,32 or seed=0,1,2.
        sweep_grid: every combination of the swept values; otherwise the first ones together, then the second, ...
        checkpoint: when to save, and what to keep.
        log: what is written while it runs.
        evaluate: how it is watched on held-out rows.
        mesh: how the run is spread over the devices; a continued run may be spread in another way.
        watch: what is looked out for: stalls, loss spikes, a profiler trace.
        compilation_cache: folder or URL where compiled programs are kept for the next session; None for jax's setting.
    """

    recipe: RecipeConfig
    cache: str
    output: str = "runs/train"
    hook_name: str | None = None
    training_tokens: int = 10_000_000
    train_batch_size_tokens: int = 4096
    seed: int = 0
    moments: Literal["float32", "bfloat16"] = "float32"
    sweep: tuple[str, ...] = ()
    sweep_grid: bool = True
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    log: LogPolicy = field(default_factory=LogPolicy)
    evaluate: EvaluatePolicy = field(default_factory=EvaluatePolicy)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    watch: WatchPolicy = field(default_factory=WatchPolicy)
    compilation_cache: str | None = None

    def __post_init__(self) -> None:
        _positive("", training_tokens=self.training_tokens, train_batch_size_tokens=self.train_batch_size_tokens)
        check_seed("config key 'seed'", self.seed)
        if self.steps < 1:
            raise ConfigError(
                f"config key 'training_tokens' = {self.training_tokens} is less than one batch of "
                f"train_batch_size_tokens = {self.train_batch_size_tokens}; give more tokens or a smaller batch"
            )

    def method(self, d_in: int | None = None, recipe: RecipeConfig | None = None) -> Recipe:
        """The recipe with everything filled in.

        Args:
            d_in: width of the rows, where the configuration leaves it to the cache.
            recipe: another one in place of the configuration's.

        Raises:
            ConfigError: an impossible recipe, or moments that its optimiser cannot keep in bf16.
        """
        built = (recipe or self.recipe).build(d_in=d_in, training_steps=self.steps)
        if self.moments == "float32":
            return built
        optimizer = halved(built.optimizer)
        if optimizer is None:
            raise ConfigError(
                f"config key 'moments' must be float32 for recipe {built.name!r}, found bfloat16: "
                "its optimiser has no such form"
            )
        return replace(built, optimizer=optimizer)

    @property
    def steps(self) -> int:
        """Whole batches in `training_tokens`."""
        return self.training_tokens // self.train_batch_size_tokens
