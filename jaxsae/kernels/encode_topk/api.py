"""The encoder and the selection in one op: [B, d_sae] pre-activations need never leave it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.kernels._dispatch import Available, Implementation, check_k, choose
from jaxsae.kernels._rows import by_rows
from jaxsae.kernels.encode_topk import pallas_gpu, pallas_tpu, reference, xla, xla_counting
from jaxsae.kernels.sharded import encode_topk as sharded
from jaxsae.kernels.sharded.axes import split_of
from jaxsae.kernels.sharded.topk import local_shape

#: Bytes of pre-activations that exist at a time where an implementation writes them: those of 4,096 rows of 131,072
#: latents.  More rows are encoded one tile after another, so that memory does not grow with rows times latents.
WRITTEN = 2 * 2**30


@dataclass(frozen=True)
class Way:
    """An implementation: the op itself, and its lists with what only a gradient and a mesh need to know.

    Attributes:
        op: differentiable; the four results.
        lists: of the same operands, the four results and which entries of the second list are there.
    """

    op: Callable
    lists: Callable

    def __call__(self, *operands: Any) -> Any:
        return self.op(*operands)


def _with_sparse_vjp(module: Any, writes: bool = True) -> Way:
    """`forward` and `backward` of an implementation as one differentiable function.

    Args:
        module: the implementation.
        writes: whether it writes the pre-activations, so that many rows are taken in tiles.
    """

    def lists(x, W, *others):
        rows = lambda x: module.forward(x, W, *others)  # noqa: E731
        return by_rows(rows, x, 4 * W.shape[1], WRITTEN) if writes else rows(x)

    @partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
    def run(x, W, b, b_pre, scale, dead, k, k_aux, signed):
        return lists(x, W, b, b_pre, scale, dead, k, k_aux, signed)[:4]

    def fwd(x, W, b, b_pre, scale, dead, k, k_aux, signed):
        *out, there = lists(x, W, b, b_pre, scale, dead, k, k_aux, signed)
        return tuple(out), (x, W, b_pre, there, out[1], out[3])

    run.defvjp(fwd, module.backward)
    return Way(run, lists)


_FUSED = Implementation(_with_sparse_vjp(pallas_tpu, writes=False), ("tpu",), pallas_tpu.refuse)

#: In order of preference.  The fused TPU kernel is asked for by name until a device's measured table prefers it.
IMPLEMENTATIONS: Available = {
    "pallas_gpu": Implementation(_with_sparse_vjp(pallas_gpu), ("gpu",), pallas_gpu.refuse),
    "xla_counting": Implementation(_with_sparse_vjp(xla_counting), ("cpu",), xla_counting.refuse),
    "xla": _with_sparse_vjp(xla),
    "pallas_tpu": _FUSED,
    "reference": Way(reference.encode_topk, reference.lists),
}


def encode_topk(
    x: jax.Array,
    W: jax.Array,
    b: jax.Array,
    b_pre: jax.Array,
    scale: jax.Array | None,
    dead: jax.Array,
    k: int,
    k_aux: int = 0,
    signed: bool = False,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The k best latents of each row, and the k_aux best among the dead ones.

        pre = (x - b_pre) W + b        score = (|pre| if signed else pre) * scale

    Both lists are ordered by score, descending, ties by lowest index.  The gradient flows through the chosen values
    of `pre` only; `scale` and `dead` steer the selection and receive none.

    Args:
        x: [B, D] rows, f32 or bf16 (the compute dtype; products are summed in f32).
        W: [D, S] encoder weight in the dtype of x.
        b: [S] encoder bias, f32.
        b_pre: [D] subtracted from x, f32.
        scale: [S] positive factor of the score, f32; None for 1, which spares a TPU some work.
        dead: [S] bool, candidates of the second list.
        k: length of the first list.
        k_aux: length of the second list, 0 for none.
        signed: rank by magnitude.
        implementation: None (best here), "pallas_tpu", "pallas_gpu", "xla", "xla_counting" (CPU) or "reference".

    Returns:
        values [B, k] (unclipped `pre`, f32), indices [B, k] int32, and the same for the dead latents: [B, k_aux].
        Where fewer than k_aux latents are dead, or the others score -inf, the rest are absent: value and index 0, and
        no gradient.

    Raises:
        ConfigError: k or k_aux out of range, or an unknown implementation.

    Example:
        >>> import jax.numpy as jnp
        >>> eye, z, one = jnp.eye(3), jnp.zeros(3), jnp.ones(3)
        >>> v, i, *_ = encode_topk(jnp.array([[1.0, 5.0, 3.0]]), eye, z, z, one, one < 0, 2)
        >>> v.tolist(), i.tolist()
        ([[5.0, 3.0]], [[1, 2]])
    """
    check_k("encode_topk", k, W.shape[1])
    if k_aux:
        check_k("encode_topk (dead latents)", k_aux, W.shape[1])
    shape = {"D": len(W), **local_shape(len(x), W.shape[1], k)}
    scaled = scale is not None or split_of(len(x), W.shape[1]) is not None
    fits = partial(pallas_tpu.refuse, k_aux=min(k_aux, shape["S"]), scaled=scaled, x_dtype=x.dtype.name)
    available = {**IMPLEMENTATIONS, "pallas_tpu": replace(_FUSED, refuse=fits)}
    run = choose("encode_topk", implementation, available, shape, W.dtype)
    if scale is None and run is not _FUSED.run:
        scale = jnp.ones(W.shape[1])  # the others multiply by it, and their compiler drops a factor of 1
    return sharded.encode_topk(run, x, W, b, b_pre, scale, dead, k, k_aux, signed)
