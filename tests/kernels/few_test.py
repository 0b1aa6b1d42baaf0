"""Lists that name few latents give what they give in `xla`, and so do those that turn out to name many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.kernels.sharded.sums import Owned
from jaxsae.kernels.sparse_decode import few, xla

ROWS, K, SIZE, WIDTH = 12, 8, 256, 5
BOUND = few.most(K, SIZE)

#: Latents that the lists may name: one, few, as many as count as few, one more, all.
LATENTS = {"one": 1, "few": 9, "just few": BOUND, "one too many": BOUND + 1, "all": SIZE}


def inputs(latents):
    """Whole numbers, so that sums are exact in any order; every latent of the choice is named."""
    rng = np.random.default_rng(latents)
    choice = rng.permutation(SIZE)[:latents]
    indices = np.concatenate([choice, rng.choice(choice, ROWS * K)])[: ROWS * K].reshape(ROWS, K)
    whole = lambda *shape: jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)  # noqa: E731
    start = whole(SIZE, WIDTH), whole(SIZE)
    return whole(ROWS, K), jnp.asarray(indices, jnp.int32), whole(SIZE, WIDTH), whole(ROWS, WIDTH), start


def equal(found, expected):
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e)
        assert a.dtype == e.dtype


def test_the_lists_here_are_long_and_the_bound_lies_between():
    assert xla.is_long(K, SIZE)
    assert 9 < BOUND < ROWS * K < SIZE


@pytest.mark.parametrize("latents", LATENTS)
def test_sums_equal_those_of_any_list(latents):
    values, indices, W, g, start = inputs(LATENTS[latents])
    equal(few.forward(values, indices, W), xla.forward(values, indices, W))
    equal(few.dots(g, indices, W), xla.dots(g, indices, W))
    equal(few.outer_sum(values, indices, g, SIZE), xla.outer_sum(values, indices, g, SIZE))
    equal(few.outer_sum(values, indices, g, SIZE, start), xla.outer_sum(values, indices, g, SIZE, start))
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), start)
    assert few.outer_sum(values, indices, g, SIZE, low)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("latents", ["few", "all"])
def test_the_choice_is_made_for_all_runs_of_a_sweep(latents):
    sets = [inputs(LATENTS[latents]), inputs(LATENTS["one too many"])]
    values, indices, W, g, start = jax.tree.map(lambda *a: jnp.stack(a), *sets)
    equal(jax.vmap(few.forward)(values, indices, W), jax.vmap(xla.forward)(values, indices, W))
    sums = lambda module: jax.vmap(lambda v, i, g, s: module.outer_sum(v, i, g, SIZE, s))(values, indices, g, start)  # noqa: E731
    equal(sums(few), sums(xla))


def test_rows_that_no_list_names_are_never_read():
    values, indices, W, g, _ = inputs(9)
    W = W.at[np.setdiff1d(np.arange(SIZE), np.asarray(indices))].set(jnp.nan)
    assert np.isfinite(np.asarray(few.forward(values, indices, W))).all()
    assert np.isfinite(np.asarray(few.dots(g, indices, W))).all()


@pytest.mark.parametrize("latents", ["few", "all"])
def test_a_device_that_works_through_whole_lists_sums_its_own_latents(latents):
    """Of four devices along the latents, on each of which the list is long and not worked through by pairs."""
    values, indices, W, g, _ = inputs(LATENTS[latents])
    values, indices, g = (jnp.tile(a, (4, 2 if a is not g else 1)) for a in (values, indices, g))
    own = SIZE // 4
    y = dots = 0.0
    for first in range(0, SIZE, own):
        part = Owned(values, indices, first, own, 4, dead=True)
        assert not part.paired
        assert few.most(indices.shape[1], own) > 0
        y, dots = y + part.decode(W[first : first + own]), dots + part.dots(g, W[first : first + own])
        dW, _ = part.outer_sum(g)
        equal(dW, xla.outer_sum(values, indices, g, SIZE)[0][first : first + own])
    equal(y, xla.forward(values, indices, W))
    equal(dots, xla.dots(g, indices, W))
