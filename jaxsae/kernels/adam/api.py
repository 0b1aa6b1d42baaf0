"""One Adam step of one leaf, with the constraint of unit rows where it has one."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels import _gpu
from jaxsae.kernels._dispatch import Available, choose, device
from jaxsae.kernels.adam import reference, xla

#: Longest piece that a leaf without unit rows is cut into.
PIECE = 2048
#: Rows of a leaf that a program takes when it reads the gradient across: so many neighbours make a sector of memory.
ROWS_ACROSS = 8


def _pallas_gpu(W, mu, nu, g, lr, count, factor, b1, b2, eps, unit, turned=False):
    """The kernel; under vmap the plain form, since a kernel in place takes one array."""
    settings = {"b1": b1, "b2": b2, "eps": eps, "unit": unit, "turned": turned and can_turn(W)}

    @custom_vmap
    def step(*arrays):
        return _gpu.module("adam").adam(*arrays, **settings)

    @step.def_vmap
    def _(n, batched, *arrays):
        axes = [0 if b else None for b in batched]
        plain = jax.vmap(functools.partial(xla.adam, **settings), in_axes=axes, axis_size=n)
        return plain(*arrays), (True, True, True)

    return step(W, mu, nu, g, lr, count, factor)


def _refuse(shape, dtype):
    if parallel.sizes():
        return "works on one device, this is a mesh"
    return _gpu.objection(dtype, shape["E"])


IMPLEMENTATIONS: Available = {
    "pallas_gpu": _gpu.implementation(_pallas_gpu, _refuse),
    "xla": xla.adam,
    "reference": reference.adam,
}


def adam(
    W: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    g: jax.Array,
    lr: jax.Array,
    count: jax.Array,
    factor: jax.Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    unit: bool = False,
    turned: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One Adam step (Kingma & Ba 2015, algorithm 1) of one leaf, whose rows may have to keep norm 1.

        g  = factor (g - <g, w> w / ||w||^2)   for every row w of W if `unit`, else  g = factor g
        mu = b1 mu + (1 - b1) g                nu = b2 nu + (1 - b2) g^2
        W  = W - lr (mu / (1 - b1^count)) / (sqrt(nu / (1 - b2^count)) + eps)
        w  = w / ||w||                         for every row if `unit`

    Args:
        W, mu, nu, g: [S, E] f32 weights, moments and gradient; any shape without `unit`.
        lr: [] learning rate.
        count: [] int32, the number of this step, from 1.
        factor: [] of the gradient, from clipping its global norm; 1 for none.
        b1, b2, eps: as in Adam.
        unit: whether rows have norm 1 and keep it (Bricken et al. 2023; Gao et al. 2024).
        turned: whether g is the transpose of what was computed, as a gradient summed by latent is for an encoder
            [D, S]; a kernel then reads that array itself, and no transpose is ever written.
        implementation: None (best here), "xla", "pallas_gpu" (in place) or "reference".

    Returns:
        The new W, mu, nu.

    Raises:
        ConfigError: shapes that differ, arrays that are not f32, or an unknown implementation.

    Example:
        >>> one, zero = jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> W, *_ = adam(one, zero, zero, one, jnp.float32(0.5), jnp.int32(1), jnp.float32(1.0))
        >>> W.round(4).tolist()
        [[0.5, 0.5]]
    """
    arrays = (W, mu, nu, g)
    if len({a.shape for a in arrays}) > 1 or any(a.dtype != jnp.float32 for a in arrays):
        found = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
        raise ConfigError(f"adam: W, mu, nu and g must be float32 arrays of one shape, found {found}")
    run = choose("adam", implementation, IMPLEMENTATIONS, sizes(W, unit), W.dtype)
    return run(*arrays, lr, count, factor, b1, b2, eps, unit, turned)


def sizes(W: jax.Array, unit: bool) -> dict[str, int]:
    """Axes of a call: N entries, in rows of E (pieces of that length where rows mean nothing; 0 if there is none)."""
    return {"N": W.size, "E": W.shape[-1] if unit else piece(W.size)}


def piece(size: int) -> int:
    """The longest piece, a multiple of 128 up to 2,048, that divides a size; 0 for none.

    Example:
        >>> piece(65536 * 2304), piece(576 * 8192), piece(100)
        (2048, 2048, 0)
    """
    return next((n for n in range(PIECE, 0, -_gpu.THREADS) if size % n == 0), 0)


def can_turn(W: jax.Array) -> bool:
    """Whether a kernel can read the gradient of this leaf across."""
    return W.ndim == 2 and W.shape[0] % ROWS_ACROSS == 0 and W.shape[1] % _gpu.THREADS == 0


def pays(W: jax.Array, unit: bool) -> bool:
    """Whether this op is faster than optax's way over all leaves: with a kernel in place, and on a CPU."""
    return W.dtype == jnp.float32 and (device()[0] == "cpu" or works_in_place(W, unit))


def works_in_place(W: jax.Array, unit: bool) -> bool:
    """Whether the best implementation here takes one pass over the leaf."""
    axes = sizes(W, unit)
    return axes["E"] > 0 and choose("adam", None, IMPLEMENTATIONS, axes, W.dtype) is _pallas_gpu
