"""The thin loop around `recipes.step`: feed it, watch it, save it, and go on where it was.

How a run is continued, completely:

1. The state is one pytree and holds everything a step reads: parameters, moments, trackers, coefficients, key, step
   count, running mean.  Randomness is folded from the key and the step, schedules are functions of the step.
2. The batch of step s is `source.batch(s)`, a function of s alone.  So the position in the data is one integer.
3. The checkpoint called n holds the state after n steps.  Step n is the next, on batch n.
4. A run starts from the newest sound checkpoint of its directory; from the beginning if there is none.
5. Records of steps after that checkpoint are dropped from the log; they will be made, and be the same, again.
6. A configuration that would have made any of the first n steps different is refused.

Hence n steps, a kill, and the rest give bit for bit what all steps at once give on the same machine.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxsae import parallel
from jaxsae.config import dump_yaml, to_dict
from jaxsae.data.sources import Source
from jaxsae.data.stream import Put, put_on, stream
from jaxsae.errors import ConfigError, DataError
from jaxsae.io.checkpoint import Checkpoints
from jaxsae.recipes import Programs, Recipe, State
from jaxsae.train.config import CheckpointPolicy, EvaluatePolicy, LogPolicy, WatchPolicy
from jaxsae.train.fleet import Fleet
from jaxsae.train.logs import JsonLines, Log, NotFinite, Record, TensorBoard, WeightsAndBiases, Writer, read_records
from jaxsae.train.lookout import Lookout
from jaxsae.train.member_logs import MemberLogs
from jaxsae.train.progress import Progress
from jaxsae.train.readme import page
from jaxsae.train.resume import Begin, continue_from, identity_of
from jaxsae.train.run_dir import RunDir, write_atomic
from jaxsae.train.stop import Diverged, Interrupted, stop_on_signal
from jaxsae.train.trace import Trace
from jaxsae.typing import Batch, PyTree

#: Steps the host may be ahead of the device.  It waits for an old step (nothing is copied), so that batches do not
#: pile up in device memory while the device always has the next step at hand.
STEPS_AHEAD = 4


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes:
        state: after the last step.
        step: updates done.
        metrics: the newest record of each kind: `metrics["train"]`, `metrics["heldout"]`.
        seconds: time the run took, over all its sessions.
    """

    state: State
    step: int
    metrics: dict[str, Record]
    seconds: float


def fit(
    recipe: Recipe | Fleet,
    source: Source,
    steps: int,
    *,
    key: jax.Array,
    heldout: Source | None = None,
    frozen: PyTree = (),
    mesh: Mesh | None = None,
    zero: bool = False,
    run_dir: RunDir | None = None,
    config: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    checkpoint: CheckpointPolicy = CheckpointPolicy(),
    log: LogPolicy = LogPolicy(),
    evaluate: EvaluatePolicy = EvaluatePolicy(),
    watch: WatchPolicy = WatchPolicy(),
) -> Fitted:
    """Trains a recipe on a source for `steps` updates; with a run directory it saves, and continues what is there.

    Args:
        recipe: the method, or a fleet of runs of one.
        source: batches as a function of the step.
        steps: updates of the whole run, those of earlier sessions included.
        key: random key of the initial weights and of the run.
        heldout: batches for evaluation; the first `evaluate.batches` are used each time, means over batches recorded.
        frozen: arrays from outside that the recipe's view reads (a host's parameters, a frozen coder).
        mesh: devices the run is spread over (see `jaxsae.parallel`); None for the default device.  A run may be
            continued on another mesh: its numbers agree up to the rounding of sums.
        zero: spread the optimiser's moments over the mesh axis `data` too.
        run_dir: an open `RunDir`; without one nothing is written, and signals are left alone.
        config: plain data that describes the run; written to `config.yaml`, and compared when it is continued.
        identity: plain data that says which rows the source gives; compared when the run is continued.
        checkpoint: when to save.
        log: what to record.
        evaluate: when to evaluate.
        watch: what to look out for.

    Raises:
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
        Diverged: the loss is not finite, or spiked where that is to stop a run; the last good checkpoint stays.
        DataError: a batch holds values that are not finite.
        CheckpointError: what is in the run directory cannot be continued, or saving failed.
        ConfigError: the run directory holds a run of another configuration.

    Example:
        >>> from jaxsae.data.sources import ArraySource
        >>> from jaxsae.recipes import topk
        >>> x = np.random.default_rng(0).standard_normal((256, 8), np.float32)
        >>> recipe = topk(d_in=8, d_sae=16, k=4)
        >>> quiet = LogPolicy(progress=False)
        >>> found = fit(recipe, ArraySource(x, batch_size=64), 3, key=jax.random.key(0), log=quiet)
        >>> found.step, found.metrics["train"]["tokens"]
        (3, 192)
    """
    if mesh is None and parallel.several():
        raise ConfigError("a run of several processes needs a mesh over their devices; see jaxsae.parallel.make_mesh")
    if isinstance(recipe, Fleet) and watch.on_spike == "stop":
        raise ConfigError("watch.on_spike = 'stop' would end all runs of a sweep for one; expected 'note'")
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.use(mesh))
        sample = _batches(source, 1, put_for(source, mesh))[0]
        programs = Programs(recipe, mesh, sample, frozen, zero)
        frozen = programs.spread(frozen)
        checkpoints, begin = None, Begin()
        about = {"run": dict(config or {}), "recipe": to_dict(recipe), "source": identity_of(source, key)}
        about["source"] |= dict(identity or {})
        if run_dir is not None:
            checkpoints = stack.enter_context(Checkpoints(run_dir.checkpoints, checkpoint.retention))
            begin = continue_from(checkpoints, programs, about, steps)
            parallel.on_first("config", lambda: _describe(run_dir, about))
        size = recipe.size if isinstance(recipe, Fleet) else 0
        book = stack.enter_context(contextlib.closing(_open_log(log, run_dir, begin, steps, source, about, size)))
        state = programs.init(key, sample, frozen) if begin.state is None else begin.state
        run = _Run(programs, frozen, state, begin.step, steps, source, heldout, checkpoints, about, book, run_dir)
        stop = stack.enter_context(stop_on_signal(enabled=run_dir is not None))
        try:
            trace = Trace(run_dir and run_dir.traced, watch.trace_step, watch.trace_steps, f"{run_dir}/profile")
            with contextlib.closing(trace):
                run.train(checkpoint, log, evaluate, stop, Lookout(watch, trace))
        except NotFinite as e:
            raise run.explain(e, log.every_steps) from e
        if stop.signum is not None and run.step < steps:
            raise Interrupted(
                f"stopped by {stop.name} after step {run.step} of {steps}; the state is saved in "
                f"{str(run_dir.checkpoints)!r}, run the same command again to continue",  # type: ignore[union-attr]
                stop.signum,
            )
        return Fitted(run.state, run.step, {k: v for k, v in book.last.items() if k != "event"}, book.seconds)


@dataclass
class _Run:
    """A run under way: what the loop needs at every turn."""

    programs: Programs
    frozen: PyTree
    state: State
    step: int
    steps: int
    source: Source
    heldout: Source | None
    checkpoints: Checkpoints | None
    about: dict[str, Any]
    log: Log
    run_dir: RunDir | None = None

    def train(
        self, checkpoint: CheckpointPolicy, log: LogPolicy, evaluate: EvaluatePolicy, stop: Any, look: Lookout
    ) -> None:
        """From the present step to the last one, or until a stop is asked for."""
        if self.step == self.steps:
            return
        vote = parallel.StopVote(self.programs.mesh)
        ahead: deque[jax.Array] = deque()
        with stream(self.source, start=self.step, put=put_for(self.source, self.programs.mesh)) as batches:
            for _, batch in look.clock.data(batches):
                look.trace.before(self.step + 1)
                self.state, metrics = self.programs.step(self.state, batch, self.frozen)
                self.step += 1
                self.tell(look.trace.after(self.step, metrics["loss"]))
                asked = vote(stop.signum)
                stop.signum = asked or stop.signum
                last = self.step == self.steps or asked is not None
                if last or self.step == 1 or self.step % log.every_steps == 0:
                    self.log.push("train", self.step, [metrics])
                    self.tell(look.clock.judge())
                    self.judge(look)
                if self.step == self.steps or self.step % evaluate.every_steps == 0:
                    self.evaluate(evaluate.batches)
                    look.clock.restart()
                if last or self.step % checkpoint.every_steps == 0:
                    self.save()
                    look.clock.restart()
                if last:
                    return
                ahead.append(metrics["loss"])
                if len(ahead) > STEPS_AHEAD:
                    look.clock.device(ahead.popleft().block_until_ready)

    def tell(self, text: str) -> None:
        """Writes a remark down, if there is one."""
        if text:
            self.log.event(self.step, text)

    def judge(self, look: Lookout) -> None:
        """Looks at the newest record that has reached the host."""
        record = self.log.last.get("train")
        spike = look.spike(record) if record else ""
        self.tell(spike)
        if spike and look.policy.on_spike == "stop":
            kept = self.kept() or "lower the learning rate"
            raise Diverged(f"step {self.step}: {spike}, and watch.on_spike is 'stop'; {kept}")

    def kept(self) -> str:
        """Which checkpoint a run that failed leaves behind."""
        if self.checkpoints is None:
            return ""
        self.checkpoints.wait()
        good = self.checkpoints.steps()
        return f"the last good checkpoint, of step {good[-1]}, is kept" if good else "no checkpoint exists yet"

    def evaluate(self, batches: int) -> None:
        """Held-out metrics of the present state; they reach the log when they are ready."""
        if self.heldout is not None and batches:
            found = [
                self.programs.evaluate(self.state, batch, self.frozen)
                for batch in _batches(self.heldout, batches, put_for(self.heldout, self.programs.mesh))
            ]
            self.log.push("heldout", self.step, found)

    def save(self) -> None:
        """Writes the log up to here, then the checkpoint: only a finite state is worth one (of a sweep: one run's).

        Behind a URL both travel while the next steps run, and the checkpoint does not count before the log is there.
        """
        self.log.flush()
        if not bool(_finite(self.state.params, isinstance(self.programs.recipe, Fleet))):
            raise NotFinite(self.step, float("nan"))
        if self.checkpoints is not None and self.run_dir is not None:
            uploaded = parallel.on_first("upload", self.run_dir.push) or (lambda: None)
            progress = {"seconds": self.log.seconds, "next_batch": self.step}
            self.checkpoints.save(self.step, self.state, config=self.about, progress=progress, before=uploaded)

    def explain(self, error: NotFinite, interval: int) -> DataError | Diverged:
        """Finds out whether the data or the training is to blame for a loss that is not finite."""
        kept = f"; {self.kept()}" if self.checkpoints is not None else ""
        for step in range(max(0, error.step - 2 * interval), error.step):
            bad = parallel.total(_bad_rows(self.source.batch(step)))
            if bad:
                return DataError(
                    f"batch {step} of the training data has {bad} rows with values that are not finite, expected "
                    f"finite activations; write the cache again without them{kept}"
                )
        lr = float(np.max(parallel.to_host(self.state.hyper["lr"])))  # of a fleet: the largest
        return Diverged(
            f"the loss is {error.loss} at step {error.step}, though the data is finite; lower the learning rate "
            f"(now {lr:.3g}) or warm it up{kept}"
        )


# --------------------------------------------------------------------------------------------------------------- log
def _open_log(
    policy: LogPolicy,
    run: RunDir | None,
    begin: Begin,
    steps: int,
    source: Source,
    about: dict[str, Any],
    members: int = 0,
) -> Log:
    writers: list[Writer] = []
    last: dict[str, Record] = {}
    if run is not None:
        last = {record["kind"]: record for record in read_records(run.log, begin.step)}
    if parallel.first():
        if run is not None:
            writers.append(JsonLines(run.log, until=begin.step))
            if members:
                writers.append(MemberLogs(run, members, begin.step))
            if policy.tensorboard:
                writers.append(TensorBoard(run.path / "tensorboard", begin.step))
            if policy.wandb_project:
                writers.append(WeightsAndBiases(policy.wandb_project, run, about))
        if policy.progress:
            writers.append(Progress(steps, begin.step))
    log = Log(writers, source.batch_size, begin.seconds, last)
    for damaged, why in begin.skipped:
        log.event(begin.step, f"checkpoint {damaged} is damaged and was set aside: {why}")
    if begin.step:
        log.event(begin.step, f"continued from the checkpoint of step {begin.step}")
    return log


# ------------------------------------------------------------------------------------------------------------ batches
def put_for(source: Source, mesh: Mesh | None) -> Put | None:
    """How batches of a source reach the devices of a mesh: each gets its own rows."""
    return None if mesh is None else put_on(parallel.sharding(mesh, "B"), source.batch_size)


def _batches(source: Source, count: int, put: Put | None) -> list[Batch]:
    """The first batches of a source, on the devices."""
    with stream(source, put=put) as batches:
        return [batch for _, batch in itertools.islice(batches, count)]


def _bad_rows(batch: Mapping[str, np.ndarray]) -> int:
    """Rows of a host batch with a value that is not finite."""
    rows = [~np.isfinite(np.asarray(x, np.float32)).all(axis=tuple(range(1, np.ndim(x)))) for x in batch.values()]
    return int(np.logical_or.reduce(rows).sum())


def _describe(run_dir: RunDir, about: dict[str, Any]) -> None:
    write_atomic(run_dir.config, dump_yaml(about["run"]))
    write_atomic(run_dir.readme, page(str(run_dir), about))
    run_dir.push()  # so that a run can be told apart from its beginning on; what goes wrong is told at the next one


@partial(jax.jit, static_argnums=1)
def _finite(params: PyTree, runs: bool) -> jax.Array:
    """Whether all parameters are finite; of several runs, whether those of one of them are."""
    each = [jnp.isfinite(x).all(axis=tuple(range(int(runs), x.ndim))) for x in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(each), axis=0).any()
