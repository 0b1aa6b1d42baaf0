"""Counters in tokens and debiased averages, by hand."""

import jax.numpy as jnp
import numpy as np

from jaxsae.sae import EmaThreshold, Fired, threshold_value
from jaxsae.sae.trackers import MOST_TOKENS


def test_tokens_since_fired_by_hand():
    own = Fired().init(3)
    for count, rows in [([1, 0, 0], 10), ([0, 0, 2], 6)]:
        own = Fired().update(own, {"count": jnp.array(count, jnp.float32), "rows": jnp.float32(rows)}, None)
    np.testing.assert_array_equal(own["since"], [6, 16, 0])


def test_counters_saturate_instead_of_wrapping():
    own = {"since": jnp.array([MOST_TOKENS - 1])}
    own = Fired().update(own, {"count": jnp.zeros(1), "rows": jnp.float32(2**20)}, None)
    assert int(own["since"][0]) == MOST_TOKENS


def test_the_average_does_not_start_from_zero_and_ignores_nan():
    tracker = EmaThreshold(beta=0.9)
    own = tracker.init(3)
    assert np.isposinf(threshold_value(own))
    for seen in [2.0, np.nan, 4.0]:
        own = tracker.update(own, jnp.float32(seen), None)
    weights = np.array([0.9 * 0.1, 0.1])  # the NaN step moved nothing
    np.testing.assert_allclose(threshold_value(own), weights @ [2.0, 4.0] / weights.sum(), rtol=1e-6)


def test_per_latent_averages_keep_silent_entries():
    tracker = EmaThreshold(beta=0.5, per_latent=True)
    own = tracker.init(2)
    own = tracker.update(own, jnp.array([1.0, jnp.nan]), None)
    np.testing.assert_array_equal(threshold_value(own), [1.0, np.inf])
