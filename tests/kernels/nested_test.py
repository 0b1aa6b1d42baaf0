"""Nested residuals: every implementation against numpy, and its gradients against autodiff of the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae import kernels, parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels.nested.api import IMPLEMENTATIONS

B, K, E, S, R = 7, 6, 5, 20, 3


def inputs(seed=0, rows=B, k=K, width=E, size=S, levels=R, dtype=jnp.float32, in_order=False):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, k)) * (rng.random((rows, k)) < 0.8)  # some entries absent
    index, level = rng.integers(0, size, (rows, k)), rng.integers(0, levels + 1, (rows, k))  # some in no level
    index[:, -1] = index[:, 0]  # a repeated atom: its contributions add
    level = np.sort(level, axis=1) if in_order else level
    W, e0, main = rng.standard_normal((size, width)), rng.standard_normal((rows, width)), rng.integers(0, levels, rows)
    f, i = (lambda a: jnp.asarray(a, jnp.float32)), (lambda a: jnp.asarray(a, jnp.int32))
    return f(values), i(index), i(level), f(W).astype(dtype), f(e0), i(main)


def by_loop(values, index, level, W, e0, main, levels):
    """Float64, one level and one entry at a time."""
    values, W, e0 = (np.asarray(a.astype(jnp.float32), np.float64) for a in (values, W, e0))
    residuals = np.repeat(e0[:, None], levels, axis=1)
    for b in range(len(values)):
        for j in range(values.shape[1]):
            for r in range(int(level[b, j]), levels):
                residuals[b, r] -= values[b, j] * W[index[b, j]]
    return np.sum(residuals**2, axis=2), residuals[np.arange(len(values)), np.asarray(main)]


def gradients(implementation, args, levels=R):
    values, index, level, W, e0, main = args
    weights = jnp.cos(jnp.arange(len(values) * levels, dtype=jnp.float32)).reshape(-1, levels)

    def f(values, W, e0):
        sse, chosen = kernels.nested(values, index, level, W, e0, main, levels, implementation=implementation)
        return jnp.sum(sse * weights) + jnp.sum(jnp.sin(chosen))

    return jax.jit(jax.grad(f, (0, 1, 2)))(values, W, e0)


def check_gradients(implementation, args, levels=R):
    for ours, plain in zip(gradients(implementation, args, levels), gradients("reference", args, levels), strict=True):
        assert ours.dtype == plain.dtype
        # In bf16 the reference adds repeated rows after rounding each, ours before: two roundings apart.
        tolerance = 1e-5 if ours.dtype == jnp.float32 else 2e-2
        ours, plain = np.asarray(ours, np.float32), np.asarray(plain, np.float32)
        np.testing.assert_allclose(ours, plain, rtol=tolerance, atol=tolerance * np.abs(plain).max(initial=0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
class TestNested:
    @pytest.mark.parametrize("in_order", [False, True])
    def test_equals_a_loop_over_rows_levels_and_entries(self, implementation, dtype, in_order):
        args = inputs(dtype=dtype, in_order=in_order)
        found = kernels.nested(*args, R, in_order=in_order, implementation=implementation)
        for ours, plain in zip(found, by_loop(*args, R), strict=True):
            assert ours.dtype == jnp.float32
            np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)

    def test_gradients_equal_autodiff_of_the_reference(self, implementation, dtype):
        check_gradients(implementation, inputs(dtype=dtype))

    def test_a_run_axis_may_be_added(self, implementation, dtype):
        runs = [inputs(seed, dtype=dtype) for seed in range(3)]
        one = lambda *a: kernels.nested(*a, R, implementation=implementation)  # noqa: E731
        stacked = jax.vmap(one)(*(jnp.stack(a) for a in zip(*runs, strict=True)))
        for i, run in enumerate(runs):
            for a, b in zip(stacked, one(*run), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "xla_rows"])
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 40), k=st.integers(1, 9), levels=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_any_shape(implementation, rows, k, levels, seed):
    args = inputs(seed, rows, k, levels=levels)
    found = kernels.nested(*args, levels, implementation=implementation)
    for ours, plain in zip(found, by_loop(*args, levels), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
    check_gradients(implementation, args, levels)


def test_more_rows_than_a_block_holds():
    """[B, K, E] is never there at once: rows go in blocks, which give the same."""
    args = inputs(rows=24, k=64, width=1024, size=200)
    check_gradients("xla_rows", args)
    text = str(jax.make_jaxpr(lambda *a: kernels.nested(*a, R, implementation="xla_rows"))(*args))
    assert "f32[12,64,1024]" in text
    assert "f32[24,64,1024]" not in text


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rows", "k"), [(0, 3), (4, 0)], ids=["no rows", "no entries"])
def test_without_entries_the_residual_is_what_it_was(implementation, rows, k):
    none, e0 = np.zeros((rows, k), np.int32), np.ones((rows, E), np.float32)
    W, main = np.ones((S, E), np.float32), np.zeros(rows, np.int32)

    def f(W, e0):
        sse, chosen = kernels.nested(none.astype(np.float32), none, none, W, e0, main, R, implementation=implementation)
        return sse.sum() + chosen.sum(), (sse, chosen)

    (dW, d_e0), (sse, chosen) = jax.grad(f, (0, 1), has_aux=True)(W, e0)
    np.testing.assert_array_equal(sse, np.full((rows, R), E))
    np.testing.assert_array_equal(chosen, e0)
    np.testing.assert_array_equal(d_e0, np.full((rows, E), 2 * R + 1))
    assert not np.any(dW)


def test_many_levels_are_walked():
    args = inputs(levels=9)
    with pytest.raises(ConfigError, match="'xla_rows' takes at most 8 levels, not 9; possible: xla, reference"):
        kernels.nested(*args, 9, implementation="xla_rows")
    for ours, plain in zip(kernels.nested(*args, 9), by_loop(*args, 9), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_entries_of_very_different_size_do_not_spoil_each_other():
    """A walk back through a residual of 1e8 would lose the small one; these residuals are made anew."""
    values, index, level = jnp.array([[1e8, 1.0]]), jnp.array([[0, 1]]), jnp.array([[1, 0]])
    W, e0, main = jnp.eye(3), jnp.array([[0.0, 0.0, 0.5]]), jnp.array([0])
    f = lambda v: kernels.nested(v, index, level, W, e0, main, 2, implementation="xla_rows")[0][0, 0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(f)(values), [[0.0, 2.0]], rtol=1e-6)


def test_on_a_mesh_the_walk_is_taken():
    args = inputs(rows=8, size=16)
    with parallel.use(parallel.make_mesh(4, 2)):
        found = jax.jit(lambda *a: kernels.nested(*a, R))(*args)
        with pytest.raises(ConfigError, match="'xla_rows' works on one device, this is a mesh; possible: xla, ref"):
            kernels.nested(*args, R, implementation="xla_rows")
    for ours, plain in zip(found, by_loop(*args, R), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"levels": 0}, "expected at least one level, found 0"),
        ({"level": jnp.zeros((B, K + 1), jnp.int32)}, r"level \[B, K\].*found"),
        ({"implementation": "walk"}, "no implementation 'walk'"),
    ],
)
def test_bad_input_is_refused(change, match):
    names = ("values", "indices", "level", "W", "e0", "main")
    with pytest.raises(ConfigError, match=match):
        kernels.nested(**{**dict(zip(names, inputs(), strict=True)), "levels": R, **change})
