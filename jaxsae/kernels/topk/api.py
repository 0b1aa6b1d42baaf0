"""The k largest entries of every row, exactly, ties by lowest index."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.kernels import _gpu
from jaxsae.kernels._dispatch import Available, Implementation, check_k, choose
from jaxsae.kernels.sharded import topk as sharded
from jaxsae.kernels.sharded.topk import local_shape
from jaxsae.kernels.topk import reference, segments, xla, xla_counting


def _pallas_gpu(x, k):
    return _gpu.module("topk").topk(x, k)


def _refuse_gpu(shape, dtype):
    return _gpu.objection(dtype, _gpu.THREADS) or _gpu.module("topk").refuse(shape, dtype)


IMPLEMENTATIONS: Available = {
    "pallas_gpu": _gpu.implementation(_pallas_gpu, _refuse_gpu),
    "segments": Implementation(segments.topk, ("tpu",), segments.refuse),
    "xla_counting": Implementation(xla_counting.topk, ("cpu",), xla_counting.refuse),
    "xla": xla.topk,
    "reference": reference.topk,
}


def topk(x: jax.Array, k: int, *, implementation: str | None = None) -> tuple[jax.Array, jax.Array]:
    """The k largest entries per row, value descending, then index ascending, as `jax.lax.top_k`.

    The gradient of a value goes to its entry; the indices are constants.

    Args:
        x: [B, S] real.
        k: how many, 1 <= k <= S.
        implementation: None (best here), "xla_counting" (CPU), "segments" (bf16 on a TPU), "pallas_gpu", "xla"
            or "reference".

    Returns:
        values [B, k] in the dtype of x and indices [B, k] int32.

    Raises:
        ConfigError: k out of range or an unknown implementation.

    Example:
        >>> import jax.numpy as jnp
        >>> v, i = topk(jnp.array([[1.0, 3.0, 2.0, 3.0]]), 2)
        >>> v.tolist(), i.tolist()
        ([[3.0, 3.0]], [[1, 3]])
    """
    check_k("topk", k, x.shape[-1])
    run = choose("topk", implementation, IMPLEMENTATIONS, local_shape(x.shape[0], x.shape[-1], k), x.dtype)
    return sharded.topk(partial(_differentiable, run), x, k)


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def _differentiable(run: Callable, x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`run(x, k)`, whose bits and loops jax cannot differentiate: a value moves with the entry that it is."""
    return run(x, k)


@_differentiable.defjvp
def _moved(run: Callable, k: int, primals: tuple, tangents: tuple) -> tuple:
    values, index = _differentiable(run, *primals, k)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return (values, index), tuple(np.zeros(index.shape, jax.dtypes.float0) for _ in range(2))
    moved = jnp.take_along_axis(tangents[0], index, axis=-1)
    return (values, index), (moved, np.zeros(index.shape, jax.dtypes.float0))
