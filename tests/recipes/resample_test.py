"""Resampling: what a redrawn latent looks like, what else is left alone, and when it happens at all."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.recipes.resample import ABSENT, Resample, Reservoir
from jaxsae.sae import Rows
from jaxsae.testing.conformance import batches

D, S, ROWS = 12, 32, 48
DEAD = np.arange(S) % 4 == 0


def recipe(at=(3,), rows=16, **options):
    options = {"lr": 1e-2, "dead_after_tokens": 10 * ROWS, "average_decay": 0.9, **options}
    return recipes.bricken(D, S, resample_steps=at, resample_rows=rows, **options)


def silenced(made, steps=2):
    """A state on the step that resamples, in which every fourth latent has been silent for long."""
    data = batches(steps + 1)
    state = recipes.init(made, jax.random.key(0), data[0])
    for batch in data[:steps]:
        state, _ = recipes.step(made, state, batch)
    bias = jnp.where(DEAD, -100.0, state.params["b_enc"])
    since = jnp.where(DEAD, 1000 * ROWS, 0).astype(jnp.int32)
    track = {**state.track, "fired": {"since": since}}
    return state.replace(params={**state.params, "b_enc": bias}, track=track), data[steps]


def test_dead_latents_become_rows_and_live_ones_are_left_alone():
    made = recipe()
    without = replace(made, transforms=())
    state, batch = silenced(made)
    plain = jax.jit(without.step)(state, batch)[0]
    drawn = jax.jit(made.step)(state, batch)[0]
    assert int((plain.track["reservoir"]["keys"] > ABSENT).sum()) == 16
    for name, axis in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
        for tree in (lambda s: s.params, lambda s: s.average):
            before, after = (np.moveaxis(np.asarray(tree(s)[name]), axis, 0) for s in (plain, drawn))
            np.testing.assert_array_equal(after[~DEAD], before[~DEAD], err_msg=name)
    rows = plain.track["reservoir"]["rows"][: DEAD.sum()]
    directions = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    W_enc, W_dec = drawn.params["W_enc"], drawn.params["W_dec"]
    np.testing.assert_allclose(W_dec[DEAD], directions, rtol=1e-5, atol=1e-6)
    alive = jnp.linalg.norm(plain.params["W_enc"], axis=0)[~DEAD].mean()
    np.testing.assert_allclose(W_enc[:, DEAD].T, 0.2 * alive * directions, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(drawn.params["b_enc"][DEAD], 0.0)
    np.testing.assert_allclose(drawn.average["W_dec"][DEAD], W_dec[DEAD])
    np.testing.assert_array_equal(drawn.track["fired"]["since"][DEAD], 0)
    assert np.all(drawn.track["reservoir"]["keys"] == ABSENT)
    x = jnp.concatenate([b["x"] for b in batches(3)])
    nearest = jnp.linalg.norm(rows[:, None] - x[None], axis=2).min(axis=1)
    np.testing.assert_allclose(nearest, 0.0, atol=1e-4)  # they are rows of the data


def test_moments_of_redrawn_latents_start_afresh():
    made = recipe()
    state, batch = silenced(made)
    plain = jax.jit(replace(made, transforms=()).step)(state, batch)[0]
    stepped = jax.jit(made.step)(state, batch)[0]
    (resample,) = made.transforms  # by itself: two compiled steps may round the moments differently
    drawn = resample(made, replace(plain, step=state.step), made.ctx(state))
    for name in ("mu", "nu"):
        for leaf, axis in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0), ("b_dec", None)):
            before, after = (np.asarray(getattr(s.opt, name)[leaf]) for s in (plain, drawn))
            if axis is None:
                np.testing.assert_array_equal(after, before)
                continue
            before, after = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
            assert not np.any(after[DEAD])
            assert not np.any(np.moveaxis(np.asarray(getattr(stepped.opt, name)[leaf]), axis, 0)[DEAD])
            np.testing.assert_array_equal(after[~DEAD], before[~DEAD])


def test_where_rows_are_fewer_than_dead_latents_the_rest_waits():
    made = recipe(rows=3)
    state, batch = silenced(made)
    drawn = jax.jit(made.step)(state, batch)[0]
    redrawn = np.asarray(drawn.track["fired"]["since"] == 0) & DEAD
    assert np.flatnonzero(redrawn).tolist() == np.flatnonzero(DEAD)[:3].tolist()


def test_on_every_other_step_nothing_happens():
    made = recipe(at=(9,))
    state, batch = silenced(made)
    plain, same = (jax.jit(r.step)(state, batch)[0] for r in (replace(made, transforms=()), made))
    jax.tree.map(np.testing.assert_array_equal, same.params, plain.params)


def test_the_cadence_stays_a_branch_under_vmap():
    made, data = recipe(), batches(1)
    states = jax.vmap(lambda k: made.init(k, data[0]))(jax.random.split(jax.random.key(0), 2))
    states, axes = states.replace(step=jnp.int32(0)), made.over_runs()
    fleet = jax.vmap(made.step, in_axes=(axes, None), out_axes=(axes, 0))
    text = str(jax.make_jaxpr(fleet)(states, data[0]))
    assert "cond[" in text


def test_rows_are_drawn_with_probability_proportional_to_squared_loss():
    """One row kept of four, 4,000 times: shares 1 : 4 : 16 : 0 for losses 1, 2, 4 and a row that does not count."""
    tracker, losses = Reservoir(2, 1), jnp.array([1.0, 2.0, 4.0, 100.0])
    x, mask = jnp.eye(4, 2), jnp.array([1.0, 1.0, 1.0, 0.0])
    made = recipe()

    def drawn(key):
        err = jnp.stack([jnp.sqrt(losses), jnp.zeros(4)], axis=1)
        out = type("Out", (), {"err": err, "rows": Rows(jnp.arange(8.0).reshape(4, 2), x, mask)})
        ctx = replace(made.ctx(recipes.init(made, jax.random.key(0), batches(1)[0])), key=key)
        return tracker.observe(out, ctx)["rows"][0, 0]

    got = np.asarray(jax.vmap(drawn)(jax.random.split(jax.random.key(1), 4000)))
    shares = [np.mean(got == v) for v in (0.0, 2.0, 4.0, 6.0)]
    np.testing.assert_allclose(shares, np.array([1, 4, 16, 0]) / 21, atol=0.03)


def test_slots_that_cannot_be_redrawn_are_refused():
    with pytest.raises(ConfigError, match="differ in `at`"):
        replace(recipe(), transforms=(Resample(at=(5,)),))
    with pytest.raises(ConfigError, match="needs the tracker 'reservoir'"):
        replace(recipe(), trackers=recipe().trackers[:1])
