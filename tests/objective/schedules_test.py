"""Schedules by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.objective import Constant, Cosine, Linear


def values(schedule, n):
    return [float(schedule(jnp.int32(i))) for i in range(n)]


def test_linear_up_then_flat_then_down():
    got = values(Linear(warm_up_steps=4, decay_steps=5, training_steps=10), 12)
    np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-6)


def test_without_lengths_nothing_moves():
    assert values(Linear(), 3) == values(Constant(), 3) == [1.0, 1.0, 1.0]


def test_cosine_ends_where_asked():
    got = values(Cosine(training_steps=10, end=0.1), 11)
    np.testing.assert_allclose([got[0], got[5], got[10]], [1.0, 0.55, 0.1], atol=1e-6)


def test_one_trace_serves_all_steps():
    traces = []
    f = jax.jit(lambda s: traces.append(1) or Linear(3, 2, 9)(s))
    [f(jnp.int32(i)) for i in range(5)]
    assert len(traces) == 1
