"""The step of all parameters: tangent gradient, clipping, optimiser, projection; in one pass per leaf where one can.

Constrained dictionaries and clipping by the global norm put reductions between the elementwise parts of a step, and a
compiler reads and writes the matrices once for each.  Where it pays, the norm of the tangent gradient is found first,
from sums over rows, and everything else is one op for each leaf.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsae import kernels
from jaxsae.kernels.adam.api import pays, works_in_place
from jaxsae.kernels.adam.reference import TINY
from jaxsae.optim.adam import Adam
from jaxsae.typing import Params, PyTree

#: Least squared norm that a row is divided by.
TINY2 = TINY**2


def move(
    optimizer: Any,
    dictionary: Any,
    train: Params,
    fixed: Params,
    grads: Params,
    opt: PyTree,
    lr: jax.Array,
    turned: tuple[str, ...] = (),
) -> tuple[Params, PyTree, jax.Array]:
    """One step of the trained leaves.

    Args:
        optimizer: description of the optimiser (`jaxsae.optim`).
        dictionary: whose `tangent` acts on the gradient before the optimiser, and `project` on the leaves after it.
        train: trained leaves.
        fixed: the others; a projection may read them.
        grads: of the trained leaves.
        opt: state of the optimiser.
        lr: [] learning rate.
        turned: leaves [D, S] whose gradient was summed by latent, [S, D].

    Returns:
        all leaves, the optimiser's state, and the global norm [] of the tangent gradient before clipping.
    """
    unit = getattr(dictionary, "unit_rows", None)
    plain_adam = isinstance(optimizer, Adam) and optimizer.mu_dtype == "float32" and not optimizer.lr_factors
    if plain_adam and unit is not None and any(pays(w, name in unit) for name, w in train.items()):
        return _by_leaf(optimizer, unit, train, fixed, grads, opt, lr, turned)
    grads = dictionary.tangent({**train, **fixed}, grads)
    direction, opt = optimizer.build().update(grads, opt, train)
    moved = jax.tree.map(lambda a, d: a - lr * d, train, direction)
    return dictionary.project({**moved, **fixed}), opt, optax.global_norm(grads)


def _by_leaf(adam, unit, train, fixed, grads, opt, lr, turned):
    turned = tuple(n for n in turned if n in train and works_in_place(train[n], n in unit))
    written = {name: g.T if name in turned else g for name, g in grads.items()}
    norm = jnp.sqrt(sum(_square(train[name], g, name in unit) for name, g in written.items()))
    factor = jnp.float32(1.0) if adam.clip is None else jnp.where(norm < adam.clip, 1.0, adam.clip / norm)
    is_adam = lambda s: isinstance(s, optax.ScaleByAdamState)  # noqa: E731
    state: Any = next(s for s in jax.tree.leaves(opt, is_leaf=is_adam) if is_adam(s))
    count = optax.safe_increment(state.count)
    rest = {"b1": adam.b1, "b2": adam.b2, "eps": adam.eps}
    new = {
        name: kernels.adam(
            *(w, state.mu[name], state.nu[name], grads[name], lr, count, factor),
            **rest,
            unit=name in unit,
            turned=name in turned,
        )
        for name, w in train.items()
    }
    params, mu, nu = ({name: leaves[i] for name, leaves in new.items()} for i in range(3))
    moved = state._replace(count=count, mu=mu, nu=nu)
    opt = jax.tree.map(lambda s: moved if is_adam(s) else s, opt, is_leaf=is_adam)
    return {**params, **fixed}, opt, norm


def _square(w: jax.Array, g: jax.Array, unit: bool) -> jax.Array:
    """Sum of squares of g, or of what is left of it beside the rows of w."""
    if not unit:
        return jnp.sum(g * g)
    along = jnp.sum(g * w, axis=-1) ** 2 / jnp.maximum(jnp.sum(w * w, axis=-1), TINY2)
    return jnp.sum(jnp.maximum(jnp.sum(g * g, axis=-1) - along, 0.0))
