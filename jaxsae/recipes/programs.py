"""The compiled programs of a recipe on a mesh: init, step, evaluate, with every leaf placed by its axis letters.

`jaxsae.train` runs these and `jaxsae plan` compiles these: there is no second description of the step.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae import parallel
from jaxsae.parallel.choose import check_divides
from jaxsae.recipes import recipe as plain
from jaxsae.recipes.placement import placements
from jaxsae.recipes.state import State
from jaxsae.typing import Batch, Params, PyTree


class Programs:
    """Init, step and evaluation of one recipe on one mesh; without a mesh, on the default device.

    Args:
        recipe: the method, or anything with a recipe's init, step and evaluate; on a mesh that also needs `d_sae` and
            `placements(state, mesh, zero)`, as a fleet has.
        mesh: of `jaxsae.parallel.make_mesh`; None for the default device.
        sample: a batch of the run, or its shapes.
        frozen: arrays from outside that the view reads, or their shapes.
        zero: spread the optimiser's moments over `data` too.

    Attributes:
        placed: sharding of every leaf of the state, or None without a mesh.
        rows: sharding of the arrays of a batch, or None without a mesh.
        abstract: the state's shapes, with shardings.

    Raises:
        ConfigError: the mesh does not divide the latents, or the rows of the sample.

    Example:
        >>> from jaxsae.recipes import topk
        >>> recipe, mesh = topk(d_in=8, d_sae=32, k=4), parallel.make_mesh(1, 1, jax.devices()[:1])
        >>> batch = {"x": jax.random.normal(jax.random.key(1), (64, 8))}
        >>> programs = Programs(recipe, mesh, batch)
        >>> state = programs.init(jax.random.key(0), batch)
        >>> state, metrics = programs.step(state, batch)
        >>> str(state.params["W_enc"].sharding.spec)
        "PartitionSpec(None, 'latent')"
    """

    def __init__(self, recipe: Any, mesh: Mesh | None, sample: Batch, frozen: PyTree = (), zero: bool = False):
        self.recipe, self.mesh, self.zero = recipe, mesh, zero
        self._check_rows(sample)
        key = jax.eval_shape(lambda: jax.random.key(0))
        with parallel.use(mesh):
            self.abstract = jax.eval_shape(recipe.init, key, sample, frozen)
        self.placed: State | None = None
        self.rows: NamedSharding | None = None
        if mesh is None:
            self._init: Any = partial(plain.init, recipe)
            self._step: Any = partial(plain.step, recipe)
            self._evaluate: Any = partial(plain.evaluate, recipe)
            return
        place = getattr(recipe, "placements", partial(placements, recipe))
        self.placed, self.rows = place(self.abstract, mesh, zero), parallel.sharding(mesh, "B")
        self.whole = NamedSharding(mesh, P())
        self.abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), self.abstract, self.placed
        )
        # A state is born where it lives: no parameter is ever whole on one device.
        self._init = jax.jit(recipe.init, out_shardings=self.placed)
        self._step = jax.jit(recipe.step, out_shardings=(self.placed, self.whole), donate_argnums=0)
        self._evaluate = jax.jit(recipe.evaluate, out_shardings=self.whole)

    def _check_rows(self, batch: Batch) -> None:
        """Refuses sizes that the mesh would leave whole on every device."""
        if self.mesh is not None:
            check_divides(self.mesh, self.recipe.d_sae, next(iter(batch.values())).shape[0], self.zero)

    def init(self, key: jax.Array, batch: Batch, frozen: PyTree = ()) -> State:
        """`recipe.init`, every leaf in its place."""
        with parallel.use(self.mesh):
            return self._init(key, batch, frozen)

    def step(self, state: State, batch: Batch, frozen: PyTree = ()) -> tuple[State, Params]:
        """`recipe.step`; the state is donated."""
        with parallel.use(self.mesh):
            return self._step(state, batch, frozen)

    def evaluate(self, state: State, batch: Batch, frozen: PyTree = ()) -> Params:
        """`recipe.evaluate`."""
        with parallel.use(self.mesh):
            return self._evaluate(state, batch, frozen)

    def lower(self, batch: Batch, frozen: PyTree = ()) -> Any:
        """The step, lowered for the mesh's devices (which need not exist), ready to `compile()`.

        Args:
            batch: shapes of a batch.
            frozen: arrays or shapes from outside.
        """
        self._check_rows(batch)
        placed = {k: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.rows) for k, a in batch.items()}
        with parallel.use(self.mesh):
            return self._step.lower(self.abstract, placed, frozen)

    def spread(self, frozen: PyTree) -> PyTree:
        """Arrays from outside on all devices of the mesh; those that are there already stay as they are."""
        if self.mesh is None:
            return frozen
        devices = set(np.asarray(self.mesh.devices).flat)

        def one(a: Any) -> Any:
            there = isinstance(a, jax.Array) and set(a.devices()) == devices
            return a if there else jax.device_put(a, self.whole)

        return jax.tree.map(one, frozen)
