"""Fleets: many runs of one recipe as one compiled program that reads every batch once.

The runs may differ in their seed and in every swept scalar of `state.hyper`: learning rate, coefficients, thresholds, k
up to the static capacity.  A fleet has the face of a recipe (`init`, `step`, `evaluate`), so the training loop, the
checkpoints and anybody's own loop take one where they take a recipe.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxsae import parallel
from jaxsae.config import register
from jaxsae.errors import ConfigError, closest
from jaxsae.kernels._control import either_in_place
from jaxsae.kernels._dispatch import device
from jaxsae.recipes import Recipe, State, letters
from jaxsae.train.config import check_seed
from jaxsae.typing import Batch, Params, PyTree

#: Least global norm of a gradient that may be too large for the squares of a step; sound ones lie far below.
SOUND_NORM = 1e15

#: Scalars that are whole, unless the recipe itself gives them as a fraction (as BatchTopK does its mean k).
COUNTS = ("k", "dead_after_tokens")

#: Where a fleet keeps, beside the trackers of its recipe, which of its runs go on.
HEALTH = "fleet"


@register("fleet.member")
@dataclass(frozen=True)
class Member:
    """One run of a fleet: its seed and its own values of swept scalars, as (name, value) pairs."""

    seed: int
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check_seed("the seed of a fleet's member", self.seed)

    @property
    def name(self) -> str:
        """A readable name, such as "lr=0.0003,seed=1"."""
        return ",".join([*(f"{n}={v:g}" for n, v in self.values), f"seed={self.seed}"])


@register("fleet")
@dataclass(frozen=True)
class Fleet:
    """Many runs of one recipe, stepped together.

    A run whose loss or gradient stops being finite is stopped where it was before that step; the others go on, and
    every number of theirs is, but for rounding, what it would have been alone.

    On a mesh the members are spread over its axis `run`: each device steps its own, and nothing of theirs travels.  Or
    every member is spread over `data` and `latent`, as a single run would be.

    Args:
        recipe: the method; its k, if swept, is the largest one.
        members: the runs.
        together: "vmap" makes one batched program of all runs, which is what accelerators like; "scan" takes the
            gradients of one member after another inside one program, which is what few cores like; None picks by
            platform.  Where a mesh has devices along `data` or `latent` it is "scan" in any case.

    Example:
        >>> from jaxsae.recipes import topk
        >>> fleet = Fleet(topk(d_in=8, d_sae=32, k=4), (Member(0, (("k", 2),)), Member(0, (("k", 4),))))
        >>> batch = {"x": jax.random.normal(jax.random.key(1), (64, 8))}
        >>> states = jax.jit(fleet.init)(None, batch)
        >>> states, metrics = jax.jit(fleet.step)(states, batch)
        >>> [round(float(v), 1) for v in metrics["l0"]], fleet.export(states, 1).k
        ([2.0, 4.0], 4)
    """

    recipe: Recipe
    members: tuple[Member, ...]
    together: Literal["vmap", "scan"] | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("a fleet needs at least one member")
        names = [sorted(n for n, _ in m.values) for m in self.members]
        if any(n != names[0] for n in names):
            raise ConfigError("all members of a fleet must set the same scalars; give every one its value")
        hyper = dict(self.recipe.hyper)
        for name in names[0]:
            if name not in hyper:
                raise ConfigError(
                    f"{name!r} cannot be swept within one program of recipe {self.recipe.name!r}{closest(name, hyper)}"
                )
        for member in self.members:  # building a recipe with its values refuses what it would refuse alone
            own = {name: _counted(name, value, hyper[name]) for name, value in member.values}
            replace(self.recipe, hyper=tuple({**hyper, **own}.items()))

    # ---------------------------------------------------------------------------------------- the face of a recipe
    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def d_in(self) -> int:
        return self.recipe.d_in

    @property
    def d_sae(self) -> int:
        return self.recipe.d_sae

    @property
    def size(self) -> int:
        """Number of runs."""
        return len(self.members)

    def init(self, key: jax.Array | None, batch: Batch, frozen: PyTree = ()) -> State:
        """Fresh states of all runs; run i is that of a lone recipe with the key of its seed.

        Args:
            key: not used: every member has a seed of its own.
            batch: a sample of the data.
            frozen: arrays from outside that the view reads.

        Raises:
            ConfigError: the mesh in force cannot hold this fleet.
        """
        del key
        _check_mesh(self.size)
        keys = jax.vmap(jax.random.key)(jnp.array([m.seed for m in self.members], jnp.uint32))
        defaults, columns = dict(self.recipe.hyper), [dict(m.values) for m in self.members]
        rows = {n: [c[n] for c in columns] for n in columns[0]}
        hyper = {n: np.asarray(values, _dtype(defaults[n], values)) for n, values in rows.items()}

        def init(keys: jax.Array, hyper: Params, batch: Batch, frozen: PyTree) -> State:
            states = jax.vmap(lambda key, own: self.recipe.init(key, batch, frozen, **own))(keys, hyper)
            return replace(states, step=jnp.int32(0))

        own, shared = P("run"), P()
        states = _by_run(init, (own, own, shared, shared), _specs())(keys, hyper, batch, frozen)
        health = {"alive": jnp.ones(self.size, bool), "stopped": jnp.full(self.size, -1, jnp.int32)}
        return replace(states, track={**states.track, HEALTH: health})

    def step(self, states: State, batch: Batch, frozen: PyTree = ()) -> tuple[State, Params]:
        """One step of every run that goes on: (states, metrics [N] by name and "alive" [N] bool)."""
        health, old = states.track[HEALTH], _without_health(states)
        own, shared = P("run"), P()
        each = _by_run(self._step_each, (_specs(), own, shared, shared), (_specs(), own, own))
        new, metrics, alive = each(old, health["alive"], batch, frozen)
        stopped = jnp.where(health["alive"] & ~alive, states.step, health["stopped"])
        health = {"alive": alive, "stopped": stopped}
        return replace(new, track={**new.track, HEALTH: health}), {**metrics, "alive": alive}

    def evaluate(self, states: State, batch: Batch, frozen: PyTree = ()) -> Params:
        """Metrics [N] of a batch under the inference rules, and "alive" [N]."""

        def each(states: State, batch: Batch, frozen: PyTree) -> Params:
            return self._see(lambda state: self.recipe.evaluate(state, batch, frozen), states)

        metrics = _by_run(each, (_specs(), P(), P()), P("run"))(_without_health(states), batch, frozen)
        return {**metrics, "alive": states.track[HEALTH]["alive"]}

    def placements(self, states: State, mesh: Mesh, zero: bool = False) -> State:
        """The sharding of every leaf on a mesh: members on `run`, the rest as `jaxsae.recipes.placements`.

        Args:
            states: of the fleet, or the shapes of one.
            mesh: where to.
            zero: spread the optimiser's moments over the devices of `data` too.
        """
        alone = jax.eval_shape(lambda s: self.member(s, 0), states)
        table = letters(self.recipe, alone)
        placed = jax.tree.map(lambda _, a: parallel.sharding(mesh, "N" + a), alone, table)
        if zero:
            moments = jax.tree.map(lambda _, a: parallel.sharding(mesh, "N" + a, zero=True), alone.opt, table.opt)
            placed = replace(placed, opt=moments)
        health = {name: parallel.sharding(mesh, "N") for name in states.track[HEALTH]}
        return replace(placed, step=parallel.sharding(mesh, ""), track={**placed.track, HEALTH: health})

    # ------------------------------------------------------------------------------------------ all runs, or in turn
    def _step_each(
        self, states: State, alive: jax.Array, batch: Batch, frozen: PyTree
    ) -> tuple[State, Params, jax.Array]:
        """A step of the runs that lie here: (states, metrics, alive).

        Where runs take turns, only their gradients do: then all move at once and in place, since a loop over states
        would write each of them twice.  Where one run is itself spread over devices, it moves in its turn.  The step
        count is shared, so that cadences stay real branches.
        """

        def see(state: State) -> tuple[tuple[Params, tuple], jax.Array]:
            found = self.recipe.grads(state, batch, frozen)
            return found, optax.global_norm(found[0])

        if parallel.sizes():

            def turn(_: Any, xs: tuple[State, jax.Array]) -> tuple[Any, Any]:
                state = replace(xs[0], step=states.step)
                state, metrics, alive = self._move_sound(state, xs[1], see(state)[0])
                return state.step, (_stepless(state), metrics, alive)

            step, (new, metrics, alive) = jax.lax.scan(turn, states.step, (_stepless(states), alive))
            return replace(new, step=step), metrics, alive

        axes = self.recipe.over_runs()
        found, norm = self._see(see, states)
        every = lambda move: jax.vmap(move, in_axes=(axes, 0, 0), out_axes=(axes, 0, 0))  # noqa: E731
        if not self._in_turn():
            return every(self._move_sound)(states, alive, found)
        sound = alive & jnp.isfinite(found[1][2]["loss"]) & (norm < SOUND_NORM)
        moves = lambda move: lambda states, alive: every(move)(states, alive, found)  # noqa: E731
        return either_in_place(jnp.all(sound), moves(self._move), moves(self._move_sound), states, alive)

    def _see(self, see: Callable, states: State) -> Any:
        """`see` of every run that lies here."""
        if not self._in_turn():
            return jax.vmap(see, in_axes=(self.recipe.over_runs(),))(states)
        return jax.lax.map(lambda state: see(replace(state, step=states.step)), _stepless(states))

    def _move(self, state: State, alive: jax.Array, found: tuple[Params, tuple]) -> tuple[State, Params, jax.Array]:
        """One run moved by its gradients, and whether it goes on."""
        new, metrics = self.recipe.apply(state, *found)
        # A gradient that is no number, or too large for one, would spoil parameters that are still sound.
        return new, metrics, alive & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

    def _move_sound(
        self, state: State, alive: jax.Array, found: tuple[Params, tuple]
    ) -> tuple[State, Params, jax.Array]:
        """As `_move`, but a run that does not go on stays where it was; only its step, which is shared, counts."""
        new, metrics, alive = self._move(state, alive, found)
        kept = jax.tree.map(lambda a, b: jnp.where(alive, a, b), _stepless(new), _stepless(state))
        return replace(kept, step=new.step), metrics, alive

    def _in_turn(self) -> bool:
        return (self.together or _best()) == "scan" or bool(parallel.sizes())

    # ------------------------------------------------------------------------------------------------ single runs
    def member(self, states: State, index: int) -> State:
        """The state of one run, as a lone recipe has it."""
        own = _without_health(states)
        return replace(jax.tree.map(lambda a: a[index], _stepless(own)), step=states.step)

    def export(self, states: State, index: int, form: str = "auto", **options: Any) -> Any:
        """The frozen SAE of one run; see `Recipe.export`."""
        return self.recipe.export(self.member(states, index), form, **options)


def _by_run(f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`f` of all members; where the mesh in force has an axis `run`, of each device's own."""
    sizes = parallel.sizes()
    if "run" not in sizes:
        return f
    return parallel.shard(f, in_specs, out_specs)


def _check_mesh(members: int) -> None:
    """Devices along `run` take branches of their own, in which those along other axes would have to meet."""
    sizes = parallel.sizes()
    run = sizes.pop("run", 1)
    if run > 1 and sizes:
        raise ConfigError(
            f"a sweep is spread over mesh.run or over data and latent, not over both; found run = {run} and {sizes}: "
            "give run all devices, or leave it at 1"
        )
    if members % run:
        raise ConfigError(f"{members} members cannot be spread evenly over mesh.run = {run} devices")


def _specs() -> State:
    """Members of a state on `run`, its step on all devices."""
    own: Any = P("run")
    return State(params=own, track=own, opt=own, hyper=own, key=own, step=P(), average=own)  # type: ignore[arg-type]


def _without_health(states: State) -> State:
    return replace(states, track={n: v for n, v in states.track.items() if n != HEALTH})


def _stepless(states: State) -> State:
    nothing: Any = None
    return replace(states, step=nothing)


def _best() -> str:
    return "scan" if device()[0] == "cpu" else "vmap"


def _counted(name: str, value: Any, default: Any) -> Any:
    """A swept value; what counts something has to be whole, since a rounded one would not be what its run is called."""
    if name not in COUNTS or not isinstance(default, int):
        return value
    if isinstance(value, float) and not value.is_integer():
        raise ConfigError(f"{name!r} of a sweep counts something, so that it has to be whole, found {value:g}")
    return int(value)


def _dtype(default: Any, values: Sequence[Any]) -> Any:
    """Of a swept scalar: a whole number that the recipe was given for a rate (lr=1) cuts none of the fractions."""
    found = jnp.asarray(default).dtype
    cuts = jnp.issubdtype(found, jnp.integer) and any(v != int(v) for v in values)
    return jnp.float32 if cuts else found


# ----------------------------------------------------------------------------------------------------------- sweeps
def parse_sweep(sweep: Sequence[str], seed: int, grid: bool = True) -> tuple[Member, ...]:
    """Members from lines such as "lr=1e-4,3e-4" and "seed=0,1,2".

    Args:
        sweep: one line per scalar, `name=value,value,...`; the name "seed" stands for seeds.
        seed: of members that no line gives one.
        grid: every combination of the values; otherwise the first values together, then the second, and so on.

    Raises:
        ConfigError: a line that cannot be read, a name twice, or (without grid) lists of different lengths.

    Example:
        >>> [m.name for m in parse_sweep(["lr=1e-4,3e-4", "seed=0,1"], seed=0)]
        ['lr=0.0001,seed=0', 'lr=0.0001,seed=1', 'lr=0.0003,seed=0', 'lr=0.0003,seed=1']
    """
    lists = _lists(sweep)
    rows: list[dict[str, float]] = [{}]
    if grid:
        for name, values in lists.items():
            rows = [{**row, name: v} for row in rows for v in values]
    else:
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"a sweep without grid needs lists of one length, found {lengths}")
        rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return tuple(Member(int(row.pop("seed", seed)), tuple(sorted(row.items()))) for row in rows)


def _lists(sweep: Sequence[str]) -> dict[str, list[float]]:
    lists: dict[str, list[float]] = {}
    for line in sweep:
        name, _, text = line.partition("=")
        name = name.strip()
        try:
            values = [float(v) for v in text.split(",")]
        except ValueError:
            values = []
        if not name or not values or not np.isfinite(values).all():
            raise ConfigError(f"config key 'sweep': expected a line such as 'lr=1e-4,3e-4', found {line!r}")
        if abs(most := max(values, key=abs)) > float(np.finfo(np.float32).max):
            raise ConfigError(f"config key 'sweep': {most:g} is beyond float32, found {line!r}")
        if name in lists:
            raise ConfigError(f"config key 'sweep': {name!r} stands twice; give all its values in one line")
        for value in values if name == "seed" else ():
            check_seed("config key 'sweep': a seed", value)
        lists[name] = values
    return lists


def largest_k(config: Any, members: Sequence[Member]) -> Any:
    """The recipe's configuration with k set to the largest swept one: the static capacity all members fit in."""
    found = [v for m in members for n, v in m.values if n == "k"]
    if not found or not any(f.name == "k" for f in dataclasses.fields(config)):
        return config
    return replace(config, k=int(max(found)))
