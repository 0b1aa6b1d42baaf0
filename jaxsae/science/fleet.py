"""Many small runs of one recipe as one program: every setting of every seed, on a testbed.

A seed has its own truth, its own data and its own random key, shared by all settings and by every method compared, so
that differences between methods are paired.  Settings are values of swept scalars (`state.hyper`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.recipes import Recipe, State
from jaxsae.sae import SAE, at_k

#: Rows of the pool that a seed's batches are cut from, over and over, and of those a trained run is judged on.
POOL_ROWS, JUDGE_ROWS = 65_536, 2048
#: Rows on which the data-dependent parts of a fresh state are measured.
START_ROWS = 2048
#: Steps between two signs of life.
BLOCK = 250
#: What the random numbers of a seed are for.
TRUTH, POOL, RUN, JUDGE = range(4)

Drawn = dict[str, jax.Array]


def rows_only(drawn: Drawn) -> Drawn:
    """`{"x": [B, D]}`: what most recipes read of what a testbed draws."""
    return {"x": drawn["x"]}


def unprepared(job: Any, keys: jax.Array, truth: Any, state: State) -> State:
    """The state as it is: most methods start at once."""
    return state


class Job(NamedTuple):
    """What one fleet trains; static.

    Attributes:
        recipe: the method.
        bed: the testbed.
        steps: updates of each run.
        rows: rows of a batch; must divide the pool.
        batch_of: turns what the testbed draws into what the recipe reads.
        form: of the frozen dictionary that is judged: "auto", "rank" or "threshold".
        prepare: (job, keys, truth, state) -> state, what a method does before its first step.
    """

    recipe: Recipe
    bed: Any
    steps: int
    rows: int = 128
    batch_of: Callable[[Drawn], Drawn] = rows_only
    form: str = "auto"
    prepare: Callable[[Any, jax.Array, Any, State], State] = unprepared


class Judged(NamedTuple):
    """Frozen dictionaries on held-out rows; N seeds, G settings.

    Attributes:
        sae: the dictionaries, leaves [N, G, ...].
        codes: [N, G, R, S] dense.
        yhat: [N, G, R, D].
        x: [N, R, D].
        true: [N, R, F] true codes.
        truth: of each seed, leaves [N, ...].
    """

    sae: SAE
    codes: jax.Array
    yhat: jax.Array
    x: jax.Array
    true: jax.Array
    truth: Any


@dataclass(frozen=True, eq=False)
class Trained:
    """A fleet after its last step: N seeds times G settings."""

    job: Job
    keys: jax.Array
    truth: Any
    state: State

    def judge(self, k: int | None = None) -> Judged:
        """Exports every run and encodes held-out rows.

        Args:
            k: latents kept per row at inference instead of the k of training; for rank forms and plain ReLU.
        """
        return jax.block_until_ready(_judge(self.job, k, self.keys, self.truth, self.state))


def train(
    job: Job,
    seeds: Sequence[int],
    sweep: Mapping[str, Any],
    on_steps: Callable[[int], None] = lambda done: None,
) -> Trained:
    """Trains one run for every seed and setting.

    Args:
        job: what to train.
        seeds: N of them.
        sweep: scalars of the recipe, each with G values, or with [N, G]; setting g takes the g-th of each.
        on_steps: called with the number of steps done, now and then.
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    wide = [np.atleast_2d(values) for values in sweep.values()]
    shape = np.broadcast_shapes((len(keys), 1), *(a.shape for a in wide))
    hyper = {name: jnp.asarray(np.broadcast_to(a, shape)) for name, a in zip(sweep, wide, strict=True)}
    truth, pool, state = _start(job, keys, hyper)
    state = job.prepare(job, keys, truth, state)
    done = 0
    while done < job.steps:
        n = min(BLOCK, job.steps - done)
        state = jax.block_until_ready(_advance(job, jnp.int32(n), pool, state))
        done += n
        on_steps(done)
    return Trained(job, keys, truth, state)


@partial(jax.jit, static_argnums=0)
def _start(job: Job, keys: jax.Array, hyper: dict[str, jax.Array]) -> tuple[Any, Drawn, State]:
    """The truth, the pool [N, pool / rows, rows, ...] and the fresh states of all seeds."""
    axes = job.recipe.over_runs()

    def of_seed(key: jax.Array, hyper: dict[str, jax.Array]) -> tuple[Any, Drawn, State]:
        truth = job.bed.init(jax.random.fold_in(key, TRUTH))
        pool = job.batch_of(job.bed.sample(truth, jax.random.fold_in(key, POOL), POOL_ROWS))
        sample = {name: a[:START_ROWS] for name, a in pool.items()}
        run = lambda h: job.recipe.init(jax.random.fold_in(key, RUN), sample, **h)  # noqa: E731
        cut = {name: a.reshape(-1, job.rows, *a.shape[1:]) for name, a in pool.items()}
        return truth, cut, jax.vmap(run, out_axes=axes)(hyper)

    return jax.vmap(of_seed, out_axes=(0, 0, axes))(keys, hyper)


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _advance(job: Job, steps: jax.Array, pool: Drawn, state: State) -> State:
    axes = job.recipe.over_runs()
    over_settings = jax.vmap(lambda s, b: job.recipe.step(s, b)[0], in_axes=(axes, None), out_axes=axes)
    over_seeds = jax.vmap(over_settings, in_axes=(axes, 0), out_axes=axes)

    def body(_: jax.Array, state: State) -> State:
        return over_seeds(state, {name: a[:, state.step % a.shape[1]] for name, a in pool.items()})

    return jax.lax.fori_loop(0, steps, body, state)


@partial(jax.jit, static_argnums=(0, 1))
def _judge(job: Job, k: int | None, keys: jax.Array, truth: Any, state: State) -> Judged:
    axes = job.recipe.over_runs()

    def of_seed(key: jax.Array, truth: Any, states: State) -> tuple:
        drawn = job.bed.sample(truth, jax.random.fold_in(key, JUDGE), JUDGE_ROWS)

        def of_run(state: State) -> tuple:
            sae = job.recipe.export(state, job.form)
            sae = sae if k is None else at_k(sae, k)
            codes = sae.encode(drawn["x"])
            return sae, codes.dense(), sae.decode(codes, like=drawn["x"])

        return (*jax.vmap(of_run, in_axes=(axes,))(states), drawn["x"], drawn["codes"])

    sae, codes, yhat, x, true = jax.vmap(of_seed, in_axes=(0, 0, axes))(keys, truth, state)
    return Judged(sae, codes, yhat, x, true, truth)
