"""Encoder matmul and selection on a TPU: the [B, S] pre-activations never leave the chip, and the result is exact.

`_filter` streams W once and keeps, per row and group of columns, the largest few scores.  The k best of those are the k
best of the row if no dropped score reaches the k-th: the certificate.  Rows that fail it (too many of their best in one
group, ties across the boundary, NaN) are encoded again, exactly, a few rows and a few thousand columns at a time, so
that no step needs memory that grows with S.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsae.kernels import _tpu
from jaxsae.kernels._chip import objection, vmem_bytes_here
from jaxsae.kernels._control import either
from jaxsae.kernels._ordered import best_first, repair
from jaxsae.kernels.encode_topk import xla
from jaxsae.kernels.encode_topk._tiles import Tiles, miss_probability, plan
from jaxsae.kernels.encode_topk.reference import no_second, present

__all__ = ["backward", "forward", "refuse"]

#: Rows encoded again at a time, and columns of W they meet at a time.
AGAIN_ROWS, AGAIN_COLUMNS = 64, 4096


def forward(x, W, b, b_pre, scale, dead, k, k_aux, signed, *, tiles: Tiles | None = None, interpret=False):
    """Values and indices, see the api for shapes, and which entries of the second list are there.

    Args:
        tiles: the kernel's static sizes; None plans them for this chip.
        interpret: for tests on a CPU.
    """
    xc = x - b_pre[None].astype(x.dtype)
    select = functools.partial(_select, k=k, signed=signed, tiles=tiles, interpret=interpret)
    nothing = no_second(len(x), k_aux)
    if not k_aux:
        return *select(xc, W, b, scale, None, k_aux=0), *nothing

    def without(xc, W, b, scale, dead):
        return *select(xc, W, b, scale, None, k_aux=0), *nothing

    return either(jnp.any(dead), functools.partial(select, k_aux=k_aux), without, (xc, W, b, scale, dead))


def backward(k, k_aux, signed, residuals, cotangents, *, interpret=False):
    """Gradients of x, W, b and b_pre as `xla.backward`, summed by the segment kernel straight into the layout of W."""

    def weight_grad(g, index, second, some, xc, size):
        def total(g, index, xc):
            kernel = _tpu.module("sparse_grad").sparse_grad
            return _tpu.run(lambda *args: kernel(*args, size, True, interpret=interpret), g, index, xc)

        if second is None:
            return total(g, index, xc)

        def both(g, index, g_aux, aux, xc):
            return total(jnp.concatenate([g, g_aux], axis=1), jnp.concatenate([index, aux], axis=1), xc)

        return either(some, both, lambda g, index, _, __, xc: total(g, index, xc), (g, index, *second, xc))

    return xla.backward(k, k_aux, signed, residuals, cotangents, weight_grad)


def refuse(shape, dtype: str, k_aux: int = 0, scaled: bool = True, x_dtype: str | None = None) -> str | None:
    """Why the kernel cannot serve a call, or None; asked on a TPU only.

    Args:
        shape: sizes of the call.
        dtype: of W.
        k_aux: length of the second list, which no measured table knows.
        scaled: whether scores are scaled, which takes more memory.
        x_dtype: of x; None for that of W.
    """
    if why := objection(dtype):
        return why
    if x_dtype not in (None, dtype):
        return f"takes x and W of one dtype, not x {x_dtype} and W {dtype}: cast one of them"
    itemsize = 4 if dtype == "float32" else 2
    tiles = plan(shape["B"], shape["D"], shape["K"], k_aux, scaled, itemsize, vmem_bytes_here())
    if tiles is None:
        lists = f"k {shape['K']}" + (f" and k_aux {k_aux}" if k_aux else "")
        return f"has no tiles of width {shape['D']} in {dtype} for {lists} that fit this chip's memory"
    if miss_probability(shape["K"], tiles.lists[0].groups, tiles.lists[0].levels) > 1e-3:
        return f"keeps too few candidates for k {shape['K']}"
    return None


def _select(xc, W, b, scale, dead, *, k, k_aux, signed, tiles, interpret):
    """Lists of k and, with `dead`, of k_aux; rows whose certificate fails are encoded again."""
    from jaxsae.kernels.encode_topk._filter import group_filter  # Pallas takes a while to import

    if tiles is None:
        tiles = plan(len(xc), xc.shape[1], k, k_aux, scale is not None, W.dtype.itemsize, vmem_bytes_here())
    assert tiles is not None  # `refuse` has seen that some fit
    tiles = dataclasses.replace(tiles, lists=tiles.lists[: 2 if k_aux else 1])
    # The filter compares floats, for which -0 and +0 are one.  A pre-activation is -0 only where its bias is, so the
    # filter is given +0 for such a bias; lists with a zero in them are then ranked again, by bits, from the true one.
    minus = (b == 0) & jnp.signbit(b)
    zeros = jnp.any(minus) | (scale is not None and not signed)  # a small negative number times a scale may be -0 too
    found = group_filter(xc, W, jnp.where(minus, 0.0, b), scale, dead, signed, tiles, interpret)
    *out, _, fine = finish(found[0], k, signed, W.shape[1], zeros)
    if k_aux:
        *second, aux_fine = finish(found[1], k_aux, signed, W.shape[1], zeros, absent=True)
        out, fine = [*out, *second], fine & aux_fine
    return encode_again(tuple(out), fine, xc, W, b, scale, dead, k, k_aux, signed)


def finish(
    found: dict, k: int, signed: bool, size: int, zeros: jax.Array | bool = False, absent: bool = False
) -> tuple:
    """The k best candidates of every row and whether they are the k best of the row.

    Args:
        found: a list of `group_filter`.
        k: how many.
        signed: whether labels carry the sign.
        size: S.
        zeros: [] bool, whether zeros may be of both signs, so that a list with a zero in it may not be the true one.
        absent: fewer than k candidates may exist; those missing get value and index 0.

    Returns:
        pre [B, k], index [B, k], there [B, k] bool, fine [B] bool.
    """
    flat = lambda a: a.transpose(1, 0, 2).reshape(a.shape[1], -1)  # noqa: E731
    score, label = flat(found["score"]), flat(found["index"])
    column = label >> 1 if signed else label
    if "pre" in found:
        best, column, values = best_first(score, column, k, flat(found["pre"]))
    elif signed:
        best, column, label = best_first(score, column, k, label)
        values = jnp.where(label & 1 > 0, -best, best)
    else:
        best, column = best_first(score, column, k)
        values = best
    # Strictly below: what was dropped then cannot belong to the list.  False for NaN.
    least, bound = best[:, -1:], found["bound"]
    below, column, there = bound < least, jnp.minimum(column, size - 1), jnp.ones(best.shape, bool)
    if absent:
        below = below | (bound == -jnp.inf)
        values, column, there = present(best, values, column)
    return values, column, there, jnp.all(below, axis=1) & ~(zeros & jnp.any(best == 0, axis=1))


def encode_again(out: tuple, fine: jax.Array, xc, W, b, scale, dead, k: int, k_aux: int, signed: bool) -> tuple:
    """Replaces the lists of rows that are not `fine`, a few rows at a time until none is left."""

    def exactly(rows):
        return streamed(jnp.take(xc, rows, axis=0, mode="clip"), W, b, scale, dead, k, k_aux, signed)

    return repair(out, fine, min(AGAIN_ROWS, len(xc)), exactly)


def streamed(xc, W, b, scale, dead, k: int, k_aux: int, signed: bool) -> tuple:
    """The same lists by `lax.top_k`, exact for every input, in memory that does not grow with S.

    Runs over blocks of columns and keeps the best so far in front of each block, so that of equals the earlier stays.
    """
    size = W.shape[1]
    wide = min(size, max(AGAIN_COLUMNS, k, k_aux))
    precision = jax.lax.Precision.HIGHEST if W.dtype == jnp.float32 else None

    def block(first, columns: int):
        part = lambda a: jax.lax.dynamic_slice_in_dim(a, first, columns, axis=-1)  # noqa: E731
        pre = jnp.dot(xc, part(W), preferred_element_type=jnp.float32, precision=precision) + part(b)[None]
        score = jnp.abs(pre) if signed else pre
        score = score if scale is None else score * part(scale)[None]
        index = jnp.broadcast_to(first + jnp.arange(columns, dtype=jnp.int32), pre.shape)
        new = [(score, pre, index)]
        if k_aux:
            alive = ~part(dead)[None]
            new.append((jnp.where(alive, -jnp.inf, score), jnp.where(alive, 0.0, pre), index))
        return new

    def best(lists):
        kept = []
        for n, arrays in zip((k, k_aux), lists, strict=False):
            at = jax.lax.top_k(arrays[0], n)[1]
            kept.append(tuple(jnp.take_along_axis(a, at, axis=1) for a in arrays))
        return kept

    def join(kept, first, columns):
        new = block(first, columns)
        return best(
            [tuple(jnp.concatenate(p, axis=1) for p in zip(*pair, strict=True)) for pair in zip(kept, new, strict=True)]
        )

    kept = best(block(0, wide))
    whole = size // wide
    kept = jax.lax.fori_loop(1, whole, lambda i, kept: join(kept, i * wide, wide), kept)
    if size % wide:
        kept = join(kept, whole * wide, size % wide)
    return *kept[0][1:], *(a for second in kept[1:] for a in present(*second))
