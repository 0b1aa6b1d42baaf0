"""What a plan compiles: a single run or a sweep as one program, on a mesh, with its batch."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxsae.parallel import Need
from jaxsae.plan.measure import Measured, measure
from jaxsae.recipes import Programs, Recipe, State
from jaxsae.train import Fleet


@dataclass(frozen=True)
class Setting:
    """One step that could be run.

    Attributes:
        recipe: the method, or the fleet of a sweep.
        mesh: devices by axis.
        rows: of the global batch.
        dtype: of the rows.
        zero: whether the optimiser's moments are spread over `data` too.
        limit: bytes that programs may take on a device, if known.
    """

    recipe: Recipe | Fleet
    mesh: Mesh
    rows: int
    dtype: str
    zero: bool = False
    limit: float | None = None

    @property
    def method(self) -> Recipe:
        """Of every run."""
        return self.recipe.recipe if isinstance(self.recipe, Fleet) else self.recipe

    @property
    def runs(self) -> int:
        """How many there are."""
        return runs_of(self.recipe)

    def with_method(self, **changes: Any) -> "Setting":
        """The same with other fields of the method."""
        method = dataclasses.replace(self.method, **changes)
        whole = dataclasses.replace(self.recipe, recipe=method) if isinstance(self.recipe, Fleet) else method
        return dataclasses.replace(self, recipe=whole)


#: What compiles a setting.
Compile = Callable[[Setting], Measured]


def runs_of(recipe: Recipe | Fleet) -> int:
    """Runs of a sweep; 1 where there is none."""
    return recipe.size if isinstance(recipe, Fleet) else 1


def mesh_text(shape: Mapping[str, int]) -> str:
    """Devices by axis, for people.

    Example:
        >>> mesh_text({"run": 1, "data": 2, "latent": 4})
        'data 2 x latent 4'
    """
    return " x ".join(f"{axis} {n}" for axis, n in shape.items() if axis != "run" or n > 1)


def need_of(recipe: Recipe | Fleet, rows: int) -> Need:
    """What the choice of a mesh goes by."""
    return Need(recipe.d_in, recipe.d_sae, rows, runs_of(recipe))


def compile_step(setting: Setting) -> Measured:
    """The step of `jaxsae.recipes.Programs`, which `fit` runs, compiled and measured."""
    batch = _batch(setting)
    return measure(Programs(setting.recipe, setting.mesh, batch, zero=setting.zero), batch, setting.limit)


def state_bytes(setting: Setting) -> int:
    """Of the training state of all runs, on all devices together and each leaf once."""
    return setting.runs * _bytes(_state(setting.method, _batch(setting)))


def exported_bytes(setting: Setting) -> int:
    """Of one run's dictionary, which `train` takes into the memory of process 0 at the end."""
    state = _state(setting.method, _batch(setting))
    try:
        return _bytes(jax.eval_shape(lambda state: setting.method.export(state).params, state))
    except jax.errors.JAXTypeError:  # an export of somebody's own that looks at values: its leaves are the trained ones
        return _bytes(state.params)


def _batch(setting: Setting) -> dict[str, Any]:
    return {"x": jax.ShapeDtypeStruct((setting.rows, setting.recipe.d_in), jnp.dtype(setting.dtype))}


def _state(method: Recipe, batch: dict[str, Any]) -> State:
    return jax.eval_shape(method.init, jax.eval_shape(lambda: jax.random.key(0)), batch)


def _bytes(tree: Any) -> int:
    leaves = [a for a in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)
