"""Exact, stable top-k: every implementation against a stable sort in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels import _dispatch, topk
from jaxsae.kernels.topk.api import IMPLEMENTATIONS

#: Those that run on a CPU; `segments` is for bf16, and plain jnp.
EVERY = ["xla", "reference", "xla_counting", "segments"]

AWKWARD = {
    "normal": lambda r: r.standard_normal((5, 2048)),
    "ties": lambda r: np.round(r.standard_normal((5, 2048)) * 2),
    "all equal": lambda r: np.full((3, 2048), 1.5),
    "all negative": lambda r: -np.abs(r.standard_normal((3, 2048))),
    "infinite": lambda r: np.where(r.random((4, 2048)) < 0.01, np.inf, r.standard_normal((4, 2048))),
    "minus infinite": lambda r: np.where(r.random((4, 2048)) < 0.99, -np.inf, r.standard_normal((4, 2048))),
    "not a multiple of the group": lambda r: r.standard_normal((3, 2049)),
}


@pytest.mark.parametrize("implementation", ["xla", "reference"])  # the others: topk_segments_test.py
@pytest.mark.parametrize("case", AWKWARD)
def test_equals_a_stable_sort(case, implementation):
    x = AWKWARD[case](np.random.default_rng(0)).astype(np.float32)
    order = np.argsort(-x, axis=1, kind="stable")[:, :4]
    values, index = topk(jnp.asarray(x), 4, implementation=implementation)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.sampled_from([128, 640, 1024, 1300]), st.integers(1, 16), st.integers(0, 10**6))
def test_implementations_agree_on_drawn_shapes(rows, size, k, seed):
    x = jnp.asarray(np.round(np.random.default_rng(seed).standard_normal((rows, size)) * 3), jnp.float32)
    for a, b in zip(topk(x, k, implementation="xla"), topk(x, k, implementation="reference"), strict=True):
        np.testing.assert_array_equal(a, b)


def call(name, x, k):
    """`topk` by an implementation; `segments` as on a TPU, where it is asked for."""
    if name != "segments":
        return topk(x, k, implementation=name)
    with _dispatch.compiling_for("tpu", "TPU v5 lite"):
        return topk(x, k, implementation=name)


@pytest.mark.parametrize("mesh", [None, (2, 2)])
@pytest.mark.parametrize("implementation", EVERY)
def test_the_gradient_of_a_value_goes_to_its_entry(implementation, mesh):
    rng = np.random.default_rng(0)
    size, dtype = (8192, jnp.bfloat16) if implementation == "segments" else (2048, jnp.float32)
    x = np.round(rng.standard_normal((4, size)) * 3).astype(np.float32)  # ties across the border
    g = rng.integers(-4, 5, (4, 7)).astype(np.float32)
    with parallel.use(mesh and parallel.make_mesh(*mesh, jax.devices()[:4])):
        found = jax.jit(jax.grad(lambda x: jnp.sum(call(implementation, x, 7)[0] * g)))(jnp.asarray(x, dtype))
    expected = np.zeros(x.shape)
    np.put_along_axis(expected, np.argsort(-x, axis=1, kind="stable")[:, :7], g, axis=1)
    np.testing.assert_array_equal(found, expected)


def test_the_tangent_of_a_value_is_that_of_its_entry():
    x, moved = jnp.array([[1.0, 3.0, 2.0]]), jnp.array([[10.0, 30.0, 20.0]])
    assert jax.jvp(lambda x: topk(x, 2)[0], (x,), (moved,))[1].tolist() == [[30.0, 20.0]]


@pytest.mark.parametrize("implementation", ["xla", "reference", "xla_counting"])
def test_without_a_gradient_nothing_more_is_computed(implementation):
    """The compiled program is that of the implementation alone."""
    x = jax.ShapeDtypeStruct((8, 4096), jnp.float32)
    whole = IMPLEMENTATIONS[implementation]
    alone = whole.run if isinstance(whole, _dispatch.Implementation) else whole
    compiled = [
        jax.jit(f, static_argnums=1).lower(x, 8).compile().cost_analysis()
        for f in (lambda x, k: topk(x, k, implementation=implementation), alone)
    ]
    assert compiled[0] == compiled[1]


@pytest.mark.parametrize("k", [0, 9])
def test_refuses_k_out_of_range(k):
    with pytest.raises(ConfigError, match="between 1 and the 8 candidates"):
        topk(jnp.zeros((2, 8)), k)


def test_a_named_implementation_never_falls_back():
    with pytest.raises(ConfigError, match="no implementation 'pallas_tpu' here"):
        topk(jnp.zeros((2, 8)), 2, implementation="pallas_tpu")
