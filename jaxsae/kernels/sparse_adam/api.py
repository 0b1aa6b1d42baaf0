"""Gradient of weight rows and the Adam step on them, in one pass over the table where an implementation can."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.kernels import _gpu, _tpu
from jaxsae.kernels._chip import objection
from jaxsae.kernels._dispatch import Available, Implementation, axes, choose, no_entries
from jaxsae.kernels.sparse_adam import reference, xla


def _pallas_tpu(W, mu, nu, values, indices, rows, lr, count, b1, b2, eps, transposed):
    kernel = _tpu.module("sparse_adam").sparse_adam
    return _tpu.run(
        lambda *arrays: kernel(*arrays, b1, b2, eps, transposed), W, mu, nu, values, indices, rows, lr, count
    )


def _refuse(shape, dtype):
    if why := objection(dtype):
        return why
    most = _tpu.module("sparse_grad").most_rows(2 if dtype == "bfloat16" else 4)
    return (
        f"keeps the rows of a batch on the chip, at most {most} here, not {shape['B']}" if shape["B"] > most else None
    )


#: On a GPU the gradient comes from its kernel, and XLA makes the step.
IMPLEMENTATIONS: Available = {
    "pallas_gpu": replace(_gpu.implementation(partial(xla.sparse_adam, sums="pallas_gpu")), leaves=no_entries),
    "xla": xla.sparse_adam,
    "pallas_tpu": Implementation(_pallas_tpu, ("tpu",), _refuse, no_entries),
    "reference": reference.sparse_adam,
}


def sparse_adam(
    W: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    values: jax.Array,
    indices: jax.Array,
    rows: jax.Array,
    lr: jax.Array,
    count: jax.Array,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    transposed: bool = False,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One Adam step (Kingma & Ba 2015, algorithm 1) with the gradient that sparse codes give.

        G[s]  = sum over (b, j) with indices[b, j] = s of values[b, j] rows[b]        (`sparse_grad`)
        mu    = b1 mu + (1 - b1) G            nu = b2 nu + (1 - b2) G^2
        W     = W - lr (mu / (1 - b1^count)) / (sqrt(nu / (1 - b2^count)) + eps)

    All rows move, also those without an entry, as in Adam.  A fused implementation never writes G to memory; clipping
    by a norm of G, which would need it, is the caller's affair: scale `values`.

    Args:
        W, mu, nu: [S, E] f32 weights and moments, or [E, S] if `transposed`.
        values: [B, K] f32.
        indices: [B, K] int32, every one in 0..S-1.
        rows: [B, E] f32 or bf16.
        lr: [] learning rate.
        count: [] int32, the number of this step, from 1.
        b1, b2, eps: as in Adam.
        transposed: latents along the second axis, as an encoder keeps them.
        implementation: None (best here), "xla", "pallas_tpu", "pallas_gpu" (the gradient's kernel, then XLA's step) or
            "reference".

    Returns:
        The new W, mu, nu.

    Raises:
        ConfigError: shapes that do not belong together, weights that are not f32, or an implementation that cannot
            serve the call, as "pallas_tpu" cannot a batch whose rows do not fit the chip.

    Example:
        >>> W, zero = jnp.ones((2, 1)), jnp.zeros((2, 1))
        >>> W, mu, nu = sparse_adam(
        ...     W, zero, zero, jnp.array([[4.0]]), jnp.array([[1]]), jnp.array([[1.0]]), jnp.float32(0.5), jnp.int32(1)
        ... )
        >>> W.round(4).tolist()
        [[1.0], [0.5]]
    """
    table = "ES" if transposed else "SE"
    codes = {"values": (values, "BK"), "indices": (indices, "BK"), "rows": (rows, "BE")}
    shape = axes("sparse_adam", **codes, W=(W, table), mu=(mu, table), nu=(nu, table))
    if not W.dtype == mu.dtype == nu.dtype == jnp.float32:
        raise ConfigError(
            f"sparse_adam: weights and moments must be float32, found {W.dtype}, {mu.dtype} and {nu.dtype}; "
            "bf16 moments are optim.AdamBf16"
        )
    run = choose("sparse_adam", implementation, IMPLEMENTATIONS, shape, rows.dtype)
    return run(W, mu, nu, values, indices, rows, lr, count, b1, b2, eps, transposed)
