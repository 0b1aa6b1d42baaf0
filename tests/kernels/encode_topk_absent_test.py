"""Entries of the second list that are not there: value and index 0, no gradient, whatever computes the list.

The values expected come from a stable sort and sums in numpy.  The TPU kernel runs in the interpreter, as the op that
the api makes of it: its own lists go into its own backward pass.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import parallel
from jaxsae.kernels import _dispatch
from jaxsae.kernels.encode_topk import api, pallas_tpu, xla
from jaxsae.kernels.encode_topk._tiles import Depth, Tiles
from jaxsae.kernels.sharded import encode_topk as sharded

B, D, S, K, K_AUX = 8, 4, 2048, 3, 6
TILES = Tiles(16, 256, 128, (Depth(128, 4, 128, 6), Depth(128, 4, 128, 7)), None)


@functools.cache
def way(name):
    """An implementation as the api has it; the kernels of a TPU interpreted."""
    if name == "pallas_tpu":
        forward = functools.partial(pallas_tpu.forward, tiles=TILES, interpret=True)
        return api._with_sparse_vjp(SimpleNamespace(forward=forward, backward=xla.backward))
    whole = api.IMPLEMENTATIONS[name]
    return whole.run if isinstance(whole, _dispatch.Implementation) else whole


NAMES = ["reference", "xla", "xla_counting", pytest.param("pallas_tpu", marks=pytest.mark.skipif(
    jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10"))]  # fmt: skip


def few_dead(rng, parts):
    """Three dead for a list of six, latent 0 among them."""
    return {**parts, "dead": np.isin(np.arange(S), [0, 700, 1999])}


def never_winning(rng, parts):
    """One latent in twenty is dead, and most dead ones score -inf; latent 0 is one of these."""
    dead = rng.random(S) < 0.05
    dead[0] = True
    low = dead & (np.arange(S) < 1950)
    return {**parts, "b": np.where(low, -np.inf, parts["b"]).astype(np.float32), "dead": dead}


def most_scores_infinite(rng, parts):
    """Alive latents score -inf too."""
    keep = np.isin(np.arange(S), [5, 77, 900, 1500, 2040])
    b = np.where(keep, parts["b"], -np.inf).astype(np.float32)
    return {**parts, "b": b, "dead": (rng.random(S) < 0.05) | (np.arange(S) == 900)}


def all_dead(rng, parts):
    """No latent is alive, and all but four score -inf."""
    b = np.where(np.isin(np.arange(S), [3, 4, 1000, 2047]), parts["b"], -np.inf).astype(np.float32)
    return {**parts, "b": b, "dead": np.ones(S, bool)}


CASES = {f.__name__: f for f in (few_dead, never_winning, most_scores_infinite, all_dead)}


def draw(case):
    rng = np.random.default_rng(7)
    eighths = lambda *shape: (rng.integers(-8, 9, shape) / 8).astype(np.float32)  # noqa: E731
    parts = {"x": eighths(B, D), "W": eighths(D, S), "b": eighths(S), "b_pre": eighths(D)}
    return CASES[case](rng, parts), eighths(B, K), eighths(B, K_AUX)


def expected(parts, g, g_aux):
    """Both lists, and the gradients of W, b and b_pre of sum(values g) + sum(aux_values g_aux)."""
    xc = parts["x"] - parts["b_pre"]
    pre = xc @ parts["W"] + parts["b"]
    rank = np.where(parts["dead"], pre, -np.inf)
    first = lambda score, k: np.argsort(-score, axis=1, kind="stable")[:, :k]  # noqa: E731
    index, aux = first(pre, K), first(rank, K_AUX)
    there = np.take_along_axis(rank, aux, 1) > -np.inf
    aux = np.where(there, aux, 0)
    lists = np.take_along_axis(pre, index, 1), index, np.where(there, np.take_along_axis(pre, aux, 1), 0), aux
    by_entry = np.zeros(pre.shape)
    rows = np.arange(B)[:, None]
    np.add.at(by_entry, (rows, index), g)
    np.add.at(by_entry, (rows, aux), np.where(there, g_aux, 0))
    db = by_entry.sum(0)
    return lists, (xc.T @ by_entry, db, -parts["W"] @ db)


def found(run, parts, g, g_aux):
    def loss(W, b, b_pre):
        # A scale, as every implementation but the fused one multiplies by it.
        out = run(parts["x"], W, b, b_pre, jnp.ones(S), jnp.asarray(parts["dead"]), K, K_AUX, False)
        finite = jnp.where(jnp.isfinite(out[0]), out[0], 0.0)  # fewer than k scores above -inf in the first list
        return jnp.sum(finite * g) + jnp.sum(out[2] * g_aux), out

    operands = (jnp.asarray(parts[n]) for n in ("W", "b", "b_pre"))
    grads, lists = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*operands)
    return lists, grads


def check(run, case):
    parts, g, g_aux = draw(case)
    (lists, grads), (wanted, wanted_grads) = found(run, parts, g, g_aux), expected(parts, g, g_aux)
    for a, e in zip(lists, wanted, strict=True):
        np.testing.assert_array_equal(a, e)
    for a, e in zip(grads, wanted_grads, strict=True):
        np.testing.assert_array_equal(a, e)  # multiples of 1/64: exact in any order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_absent_entries_are_zero_and_take_no_gradient(case, name):
    assert np.sum(expected(*draw(case))[0][3] == 0) > B  # some are absent in most rows, or nothing would be tested
    check(way(name), case)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_so_on_a_mesh(shape, name):
    """Every device ranks its own latents: latent 0 of one that has no dead latent left must not come in."""
    with parallel.use(parallel.make_mesh(*shape)):
        for case in CASES:
            check(lambda *operands: sharded.encode_topk(way(name), *operands), case)
