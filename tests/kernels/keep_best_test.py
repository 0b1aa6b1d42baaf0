"""The best entries of a matrix against a stable sort in numpy, on one device and on meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import parallel
from jaxsae.errors import ConfigError
from jaxsae.kernels import _dispatch, keep_best, keep_best_of_columns, topk_mask
from jaxsae.kernels.keep_best.api import IMPLEMENTATIONS

CASES = {
    "normal": lambda r: r.standard_normal((16, 24)),
    "ties": lambda r: np.round(r.standard_normal((16, 24))),
    "all equal": lambda r: np.full((16, 24), -2.5),
    "zeros of both signs": lambda r: np.where(r.random((16, 24)) < 0.5, 0.0, -0.0),
    "infinite": lambda r: np.where(r.random((16, 24)) < 0.3, np.inf, np.round(r.standard_normal((16, 24)))),
    "minus infinite": lambda r: np.where(r.random((16, 24)) < 0.9, -np.inf, r.standard_normal((16, 24))),
}


def expected(x, count):
    order = np.argsort(-x.reshape(-1), kind="stable")[: max(count, 0)]
    keep = np.zeros(x.size, bool)
    keep[order] = True
    return keep.reshape(x.shape)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_equals_a_stable_sort(case, implementation):
    x = CASES[case](np.random.default_rng(0)).astype(np.float32)
    run = jax.jit(lambda x, n: keep_best(x, n, implementation=implementation))
    for count in (-1, 0, 1, 37, x.size - 1, x.size, 2 * x.size):
        np.testing.assert_array_equal(run(jnp.asarray(x), count), expected(x, count))


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4), (4, 2)])
def test_any_mesh_keeps_the_same_entries(shape):
    with parallel.use(parallel.make_mesh(*shape)):
        run = jax.jit(keep_best)
        for make in CASES.values():
            x = make(np.random.default_rng(1)).astype(np.float32)
            for count in (0, 1, 37, x.size):
                np.testing.assert_array_equal(run(jnp.asarray(x), count), expected(x, count))


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (4, 2)])
def test_latents_spread_over_devices_keep_the_same_entries(shape):
    with parallel.use(parallel.make_mesh(*shape)):
        run = jax.jit(lambda x, n: keep_best(x, n, latents=True))
        for make in CASES.values():
            x = make(np.random.default_rng(1)).astype(np.float32)
            for count in (0, 1, 37, x.size):
                np.testing.assert_array_equal(run(jnp.asarray(x), count), expected(x, count))


@pytest.mark.parametrize("shape", [None, (1, 8), (8, 1), (2, 4)])
def test_columns_keep_their_own_best_on_any_mesh(shape):
    counts = np.array([-1, 0, 1, 5, 15, 16] * 4, np.int32)
    with parallel.use(shape and parallel.make_mesh(*shape)):
        run = jax.jit(lambda x, n: keep_best_of_columns(x, n, 16))
        for make in CASES.values():
            x = make(np.random.default_rng(2)).astype(np.float32)
            wanted = np.stack([expected(x[:, i : i + 1], n)[:, 0] for i, n in enumerate(counts)], axis=1)
            np.testing.assert_array_equal(run(jnp.asarray(x), jnp.asarray(counts)), wanted)


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)])
def test_a_mesh_runs_the_implementation_that_was_named_or_says_why_not(shape):
    x = jnp.asarray(CASES["ties"](np.random.default_rng(1)), jnp.float32)
    with parallel.use(parallel.make_mesh(*shape)):
        kept = keep_best(x, jnp.array(37), latents=True, implementation="xla")
        np.testing.assert_array_equal(kept, expected(np.asarray(x), 37))
        with pytest.raises(ConfigError, match=r"keep_best: 'reference' sorts the whole matrix.*; possible: xla"):
            keep_best(x, jnp.array(37), latents=True, implementation="reference")


def test_a_measured_table_decides(monkeypatch):
    """The choice knows the sizes of the call."""
    row = {"shape": {"B": 16, "C": 24}, "dtype": "float32", "milliseconds": {"xla": 2.0, "reference": 1.0}}
    monkeypatch.setattr(_dispatch, "table", lambda kind: {"keep_best": [row]})
    program = lambda: str(jax.make_jaxpr(lambda x: keep_best(x, jnp.array(3)))(jnp.zeros((16, 24))))  # noqa: E731
    assert "sort" in program()
    monkeypatch.setattr(_dispatch, "table", lambda kind: {})
    assert "sort" not in program()


def test_refuses_numbers_that_float32_would_round_and_lists_longer_than_a_column():
    whole = jnp.array([[2**24, 2**24 + 1]], jnp.int32)
    with pytest.raises(ConfigError, match="keep_best: takes float32, bfloat16 or float16, found int32"):
        keep_best(whole, jnp.array(1))
    with pytest.raises(ConfigError, match="keep_best_of_columns: takes float32, bfloat16 or float16, found int32"):
        keep_best_of_columns(whole, jnp.array([1, 1]), 1)
    for most in (0, 3):
        why = f"keep_best_of_columns: k must lie between 1 and the 2 candidates, found {most}"
        with pytest.raises(ConfigError, match=why):
            keep_best_of_columns(jnp.zeros((2, 8)), jnp.ones(8, jnp.int32), most)


@pytest.mark.parametrize("op", [lambda x: keep_best(x, 3), lambda x: topk_mask(x, 3, over="all")])
def test_refuses_more_entries_than_an_int32_counts(op):
    with pytest.raises(ConfigError, match=r"counts at most 2147483647 entries on a device, found 2147483648 \("):
        jax.eval_shape(op, jax.ShapeDtypeStruct((2**14, 2**17), jnp.float32))
    jax.eval_shape(op, jax.ShapeDtypeStruct((2**14, 2**16), jnp.float32))


def test_the_mesh_in_force_divides_what_is_counted():
    with parallel.use(parallel.make_mesh(2, 4)):
        wide = jax.ShapeDtypeStruct((2**14, 2**17), jnp.float32)
        assert jax.eval_shape(lambda x: keep_best(x, 3, latents=True), wide).shape == wide.shape


def test_a_nan_is_worse_than_anything():
    x = jnp.array([[jnp.nan, -jnp.inf, -1.0]])
    for implementation in IMPLEMENTATIONS:
        assert keep_best(x, jnp.array(1), implementation=implementation).tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("shape", "latents", "sizes"), [((8, 1), False, {"", "8"}), ((1, 8), True, {"", "64", "8,64"})]
)
def test_what_travels_is_counts(shape, latents, sizes):
    """Over latents one count per row besides, from each device."""
    mesh = parallel.make_mesh(*shape)
    x = jax.device_put(jnp.zeros((64, 64)), parallel.sharding(mesh, "BS" if latents else "B"))
    with parallel.use(mesh):
        run = jax.jit(lambda x, n: keep_best(x, n, latents=latents))
        text = run.lower(x, jnp.array(5)).compile().as_text()
    moved = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)\(", text)
    assert moved
    assert set(moved) <= sizes, moved
