"""What a sweep leaves behind: a dictionary and a summary for each of its runs."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae import parallel
from jaxsae.recipes import State
from jaxsae.sae import SAE, Meta
from jaxsae.train.fleet import HEALTH, Fleet
from jaxsae.train.loop import Fitted
from jaxsae.train.room import write
from jaxsae.train.run_dir import RunDir, write_json
from jaxsae.train.stop import Diverged


def export_members(
    fleet: Fleet, fitted: Fitted, run_dir: RunDir, meta: Meta, summary: dict[str, Any]
) -> tuple[dict[str, Any], SAE]:
    """Exports every run that did not diverge into `members/<nn>/`, and the one with the lowest loss into `sae/`.

    Losses of runs with different coefficients are not one scale; the choice only decides what `sae/` holds.  It is the
    first run where the log, which tells the last losses of a sweep that is complete, is gone.  Where several processes
    share the sweep all of them have to call this; the first one writes.

    Args:
        fleet: the runs.
        fitted: what the loop returned for them.
        run_dir: folder of the sweep.
        meta: provenance of the dictionaries; each run's name is added.
        summary: of the whole sweep; a list "runs" and the paths are added.

    Returns:
        the summary and the dictionary chosen.

    Raises:
        Diverged: no run is left.
    """
    last = fitted.metrics.get("train", {}).get("members", {})  # of a finished run whose log is lost: nothing
    health = parallel.to_host(fitted.state.track[HEALTH])
    losses = np.full(fleet.size, np.nan)
    runs = []
    for i, member in enumerate(fleet.members):
        run: dict[str, Any] = {"name": member.name, "seed": member.seed, **dict(member.values)}
        sae = _export(fleet, fitted.state, i, meta) if bool(health["alive"][i]) else None
        if sae is None:  # also one that its very last step spoiled
            parallel.on_first("member", run_dir.member(i).set_dictionary_aside)
            run["stopped"] = int(health["stopped"][i]) if not health["alive"][i] else fitted.step
        else:
            losses[i] = last["loss"][i] if last else np.inf
            run |= {name: values[i] for name, values in last.items() if name != "alive"}
            left_out = write(sae, run_dir.member(i), run_dir.place.remote)[1]
            run |= {"left_out": left_out} if left_out else {"sae": f"{run_dir}/{run_dir.member_name(i)}/sae"}
        parallel.on_first("summary of a member", partial(write_json, run_dir.member(i).summary, run))
        runs.append(run)
        del sae  # one at a time
    if np.isnan(losses).all():
        raise Diverged("every run of the sweep has diverged, so that there is no dictionary; lower the learning rates")
    best = int(np.nanargmin(losses))
    chosen = _export(fleet, fitted.state, best, meta)
    assert chosen is not None  # it was exported above
    summary = {**{k: v for k, v in summary.items() if k != "train"}, "runs": runs, "best": best}
    chosen, left_out = write(chosen, run_dir, run_dir.place.remote)
    return summary | ({"sae": None, "left_out": left_out} if left_out else {}), chosen


def _export(fleet: Fleet, states: State, index: int, meta: Meta) -> SAE | None:
    """The dictionary of one run, where that lies; None if it is not finite."""
    with parallel.use(parallel.mesh_of(states.params)):
        state = _alone(fleet, states, index)
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params)):
            return None
        return fleet.recipe.export(state, meta=meta.with_extra(run=fleet.members[index].name))


def _alone(fleet: Fleet, states: State, index: int) -> State:
    """What a dictionary needs of one run; on a mesh spread as a single run would be."""
    nothing: Any = None
    states = replace(states, opt=(), key=nothing, track={n: v for n, v in states.track.items() if n != HEALTH})
    mesh = parallel.mesh_of(states.params)
    if not parallel.several() or mesh is None:
        return fleet.member(states, index)
    own = fleet.size // mesh.shape["run"]

    def member(states: State) -> State:
        """Of the device that has it on all along `run`: by a sum, since a slice would first gather all runs."""
        state = fleet.member(states, index % own)
        if own == fleet.size:
            return state
        mine = jax.lax.axis_index("run") == index // own
        return jax.tree.map(lambda a: jax.lax.psum(jnp.where(mine, a, jnp.zeros_like(a)), "run").astype(a.dtype), state)

    specs = jax.tree.map(lambda a: a.sharding.spec, states)
    placed = jax.tree.map(lambda a: NamedSharding(mesh, P(*a.sharding.spec[1:])), states)
    run = member if own == fleet.size else parallel.shard(member, (specs,), P())
    return replace(jax.jit(run, out_shardings=placed)(states), step=states.step)
