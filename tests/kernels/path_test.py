"""The residual walk: every implementation against numpy, and its gradients against autodiff of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels.path.api import IMPLEMENTATIONS

B, K, E, S = 7, 6, 5, 20


def inputs(seed=0, rows=B, k=K, width=E, size=S, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, k)) * (rng.random((rows, k)) < 0.8)  # some entries absent
    index = rng.integers(0, size, (rows, k))
    index[:, -1] = index[:, 0]  # a repeated atom: its contributions add
    W, e0, main = rng.standard_normal((size, width)), rng.standard_normal((rows, width)), rng.integers(0, k + 1, rows)
    f = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    return f(values), jnp.asarray(index, jnp.int32), f(W).astype(dtype), f(e0), jnp.asarray(main, jnp.int32)


def by_loop(values, index, W, e0, main):
    """Float64, one row and one entry at a time."""
    values, W, e0 = (np.asarray(a, np.float64) for a in (values, W.astype(jnp.float32), e0))
    sse, chosen = np.zeros((len(values), values.shape[1] + 1)), np.zeros_like(e0)
    for b in range(len(values)):
        e = e0[b].copy()
        for j in range(values.shape[1] + 1):
            if j:
                e -= values[b, j - 1] * W[index[b, j - 1]]
            sse[b, j] = e @ e
            if main[b] == j:
                chosen[b] = e
    return sse, chosen


def objective(implementation, weights):
    def f(values, W, e0, index, main):
        sse, chosen = kernels.path(values, index, W, e0, main, implementation=implementation)
        return jnp.sum(sse * weights) + jnp.sum(jnp.sin(chosen))

    return f


def gradients(implementation, args):
    values, index, W, e0, main = args
    weights = jnp.cos(jnp.arange(values.size + len(values), dtype=jnp.float32)).reshape(len(values), -1)
    return jax.jit(jax.grad(objective(implementation, weights), (0, 1, 2)))(values, W, e0, index, main)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestPath:
    def test_equals_a_loop_over_rows_and_entries(self, implementation, dtype):
        args = inputs(dtype=dtype)
        for ours, plain in zip(kernels.path(*args, implementation=implementation), by_loop(*args), strict=True):
            assert ours.dtype == jnp.float32
            np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)

    def test_gradients_equal_autodiff_of_the_reference(self, implementation, dtype):
        args = inputs(dtype=dtype)
        for ours, plain in zip(gradients(implementation, args), gradients("reference", args), strict=True):
            assert ours.dtype == plain.dtype
            # In bf16 the reference adds repeated rows after rounding each, ours before: two roundings apart.
            tolerance = 1e-5 if ours.dtype == jnp.float32 else 2e-2
            ours, plain = np.asarray(ours, np.float32), np.asarray(plain, np.float32)
            np.testing.assert_allclose(ours, plain, rtol=tolerance, atol=tolerance * np.abs(plain).max())

    def test_a_run_axis_may_be_added(self, implementation, dtype):
        runs = [inputs(seed, dtype=dtype) for seed in range(3)]
        stacked = jax.vmap(lambda *a: kernels.path(*a, implementation=implementation))(
            *(jnp.stack(a) for a in zip(*runs, strict=True))
        )
        for i, run in enumerate(runs):
            for a, b in zip(stacked, kernels.path(*run, implementation=implementation), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.integers(1, 12), st.integers(0, 10**6))
def test_implementations_agree_on_drawn_shapes(rows, k, width, size, seed):
    args = inputs(seed, rows, k, width, size)
    for a, b in zip(gradients("xla", args), gradients("reference", args), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.abs(b).max() + 1))


def test_rebuilt_residuals_do_not_drift_over_long_lists():
    """512 entries, large steps: the gradient of every value still agrees with float64."""
    values, index, W, e0, main = inputs(3, rows=4, k=512, width=16, size=64)
    weights = jnp.ones((4, 513))
    ours = jax.jit(jax.grad(objective("xla", weights)))(values, W, e0, index, main)
    v, w, e = (np.asarray(a, np.float64) for a in (values, W, e0))
    atoms = w[np.asarray(index)]
    residuals = e[:, None] - np.cumsum(v[:, :, None] * atoms, axis=1)
    chosen = np.where((np.arange(1, 513)[None] == np.asarray(main)[:, None])[..., None], np.cos(residuals), 0.0)
    G = np.cumsum((2 * residuals + chosen)[:, ::-1], axis=1)[:, ::-1]
    plain = -np.einsum("bke,bke->bk", G, atoms)
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max())


def test_memory_does_not_grow_with_all_residuals():
    """Temporaries of forward and backward stay near [B, E] + [B, K] + [S, E]; the reference holds [B, K, E]."""

    def temporaries(implementation, k):
        args = inputs(rows=64, k=k, width=128, size=256)
        f = objective(implementation, jnp.ones((64, k + 1)))
        grad = jax.jit(jax.grad(f, (0, 1, 2)))
        values, index, W, e0, main = args
        return grad.lower(values, W, e0, index, main).compile().memory_analysis().temp_size_in_bytes

    few, many = (temporaries("xla", k) for k in (16, 128))
    entries, residual, dictionary = 64 * 128 * 4, 64 * 128 * 4, 256 * 128 * 4
    assert many <= 8 * (entries + residual) + 2 * dictionary
    assert many - few <= 8 * entries  # the slope is that of [B, K]
    assert temporaries("reference", 128) > 64 * 128 * 128 * 4


def test_refuses_shapes_that_do_not_belong_together():
    values, index, W, e0, main = inputs()
    with pytest.raises(ConfigError, match=r"path: expected values \[B, K\], indices \[B, K\], W \[S, E\], e0"):
        kernels.path(values, index, W, e0[:, :2], main)
    with pytest.raises(ConfigError, match="no implementation 'nonsense' here"):
        kernels.path(values, index, W, e0, main, implementation="nonsense")
