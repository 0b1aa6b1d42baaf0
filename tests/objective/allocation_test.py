"""The Zipf auxiliary loss: whom it revives, and that AuxK is its special case."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.objective import AuxK, AuxZipf, RelativeL1, Underused
from jaxsae.sae import Ctx, DenseCodes, Free, Out, Rows, Selection, zipf_curve
from jaxsae.testing.conformance import assert_close, batches

D, S = 12, 32


def ctx(count, rows, tolerance=0.5, k=2.0):
    hyper = {"k": k, "zipf_q": 0.0, "zipf_s": 1.0, "zipf_tolerance": tolerance}
    track = {"density": {"count": jnp.asarray(count, jnp.float32), "rows": jnp.float32(rows)}}
    return Ctx(jnp.int32(0), None, hyper, track, pool=Underused())


def test_a_latent_is_underused_if_it_falls_short_of_the_curve_at_its_rank():
    """k = 2 over 4 latents, s = 1: curve min(1, 2 (12, 6, 4, 3) / 25) = 0.96, 0.48, 0.32, 0.24 of 100 rows."""
    c = ctx([96, 10, 32, 0], 100)  # ranks 0, 2, 1, 3: due 0.96, 0.32, 0.48, 0.24
    np.testing.assert_allclose(Underused().shortfall(c), [0, 1 - 0.1 / 0.32, 1 - 0.32 / 0.48, 1], atol=1e-6)
    np.testing.assert_array_equal(c.dead(), [False, True, False, True])
    np.testing.assert_array_equal(ctx([96, 10, 32, 0], 100, tolerance=1.0).dead(), [False, False, False, True])


def test_nobody_is_judged_before_the_curve_lets_expect_ten_firings():
    np.testing.assert_array_equal(ctx([19, 2, 6, 0], 20).dead(), [False, False, False, False])


def state_with(recipe, count):
    batch = batches(1, d=D)[0]
    state = recipes.init(recipe, jax.random.key(0), batch)
    since = jnp.where(count > 0, 0, 2**20).astype(jnp.int32)
    track = {**state.track, "fired": {"since": since}, "density": {"count": count, "rows": jnp.float32(1000.0)}}
    return state.replace(track=track), batch


def test_auxk_is_the_case_in_which_only_density_zero_counts():
    """Twelve silent latents; with tolerance 1 the two losses and all their gradients agree."""
    zipf = recipes.mutual_choice(D, S, k=4, zipf_tolerance=1.0, k_aux=6, dead_after_tokens=2**19)
    others = tuple(AuxK(6) if isinstance(t, AuxZipf) else t for t in zipf.terms)
    auxk = dataclasses.replace(zipf, terms=others)
    count = 1000 * 4 * zipf_curve(S, 10.0, 1.0) * (jnp.arange(S) < 20)
    state, batch = state_with(zipf, count)
    assert int(zipf.ctx(state).dead().sum()) == 12
    ours, (_, _, seen) = zipf.grads(state, batch)
    theirs, (_, _, peer) = auxk.grads(state, batch)
    assert float(seen["aux_zipf"]) > 0
    np.testing.assert_allclose(seen["aux_zipf"], peer["auxk"], rtol=1e-6)
    assert_close(ours, theirs, 1e-6)


def test_the_weight_grows_with_the_shortfall():
    recipe = recipes.mutual_choice(D, S, k=4, zipf_tolerance=0.2, k_aux=6)
    curve, losses = 1000 * 4 * zipf_curve(S, 10.0, 1.0), []
    for share in (0.7, 0.4, 0.0):
        state, batch = state_with(recipe, curve * jnp.where(jnp.arange(S) < 20, 1.0, share))
        assert int(recipe.ctx(state).dead().sum()) == 12
        losses.append(float(recipe.grads(state, batch)[1][2]["aux_zipf"]))
    np.testing.assert_allclose(np.array(losses) / losses[-1], [0.3, 0.6, 1.0], rtol=1e-4)


def test_two_ideas_of_whom_to_revive_are_refused():
    recipe = recipes.mutual_choice(D, S, k=4)
    with pytest.raises(ConfigError, match="revive different sets of latents"):
        dataclasses.replace(recipe, terms=(*recipe.terms, AuxK(4)))


def test_relative_l1_counts_only_rows_that_count():
    z, x = jnp.array([[1.0, -2.0], [4.0, 0.0], [9.0, 9.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0], [7.0, 7.0]])
    out = Out(Rows(x, x, jnp.array([1.0, 1.0, 0.0])), {}, Selection(DenseCodes(z)), x, x, x, Free(2, 2))
    np.testing.assert_allclose(RelativeL1()(out, None), (3 + 4) / (5 + 1), rtol=1e-6)
