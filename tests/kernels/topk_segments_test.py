"""Certified top-k by segments against a stable sort; approximate top-k against its promise."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxsae.errors import ConfigError
from jaxsae.kernels import approx_topk, topk
from jaxsae.kernels.topk import segments
from jaxsae.kernels.topk.approx import expected_recall, measured_recall

ROWS, SIZE = 6, 5000  # not a multiple of the blocks dealt


def neighbours(r):
    """The strong entries lie next to each other, as in a sorted dictionary."""
    x = r.standard_normal((ROWS, SIZE))
    x[:, :400] += 6
    return x


def one_segment(r):
    """The strong entries all fall into one segment: its certificate fails."""
    x = r.standard_normal((ROWS, SIZE))
    x[:, :128] += 9
    return x


AWKWARD = {
    "normal": lambda r: r.standard_normal((ROWS, SIZE)),
    "ties": lambda r: np.round(r.standard_normal((ROWS, SIZE)) * 2),
    "all equal": lambda r: np.full((ROWS, SIZE), 1.5),
    "all negative": lambda r: -np.abs(r.standard_normal((ROWS, SIZE))),
    "minus infinite": lambda r: np.where(r.random((ROWS, SIZE)) < 0.999, -np.inf, 1.0),
    "infinite": lambda r: r.choice([np.inf, -np.inf, 0.0, 1.0], (ROWS, SIZE), p=[0.01, 0.5, 0.29, 0.2]),
    "signed zeros": lambda r: np.where(r.random((ROWS, SIZE)) < 0.5, -0.0, 0.0),
    "few +0 among -0": lambda r: np.where(np.arange(SIZE)[None] % 701 == 5, 0.0, np.full((ROWS, SIZE), -0.0)),
    "NaN": lambda r: np.where(r.random((ROWS, SIZE)) < 0.002, np.nan, r.standard_normal((ROWS, SIZE))),
    "NaN of both signs": lambda r: r.choice([np.nan, -np.nan, -np.inf], (ROWS, SIZE), p=[0.001, 0.997, 0.002]),
    "NaN of negative sign": lambda r: np.full((ROWS, SIZE), -np.nan),
    "neighbours": neighbours,
    "one segment": one_segment,
}


def by_bits(x):
    """Integers in the order of `lax.top_k`: -NaN < -inf < -0 < +0 < inf < NaN."""
    bits = x.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)


@pytest.mark.parametrize("k", [7, 60])
@pytest.mark.parametrize("case", AWKWARD)
def test_equals_a_stable_sort(case, k):
    x = AWKWARD[case](np.random.default_rng(0)).astype(ml_dtypes.bfloat16)
    values, index = jax.jit(segments.topk, static_argnums=(1, 2))(jnp.asarray(x), k, 8)
    order = np.argsort(-by_bits(x), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(np.asarray(values, np.float32), np.take_along_axis(x, order, 1).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(values), np.signbit(np.take_along_axis(x, order, 1)))
    assert values.dtype == jnp.bfloat16


def test_says_what_it_cannot_serve():
    assert "takes bfloat16" in segments.refuse({"S": 65536, "K": 8}, "float32")
    assert "needs segments" in segments.refuse({"S": 8192, "K": 128}, "bfloat16")
    assert segments.refuse({"S": 131072, "K": 64}, "bfloat16") is None
    with pytest.raises(ConfigError, match="'segments' runs on tpu, this is cpu"):
        topk(jnp.zeros((2, 8192), jnp.bfloat16), 2, implementation="segments")


def test_approximate_finds_what_it_promises():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4096)), jnp.float32)
    values, index = approx_topk(x, 16, recall=0.9)
    np.testing.assert_array_equal(values, jnp.take_along_axis(x, index, axis=1))
    assert float(measured_recall(index, jax.lax.top_k(x, 16)[1])) >= 0.9


@pytest.mark.parametrize(
    ("k", "recall", "why"),
    [
        (0, 0.9, "approx_topk: k must lie between 1 and the 64 candidates, found 0"),
        (65, 0.9, "approx_topk: k must lie between 1 and the 64 candidates, found 65"),
        (3, 1.5, "approx_topk: recall is a share between 0 and 1, found 1.5"),
        (3, 0.0, "approx_topk: recall is a share between 0 and 1, found 0.0"),
    ],
)
def test_approximate_refuses_what_it_cannot_promise(k, recall, why):
    with pytest.raises(ConfigError, match=why):
        approx_topk(jnp.zeros((2, 64)), k, recall=recall)


def test_the_expected_recall_is_that_of_random_bins():
    rng = np.random.default_rng(0)
    found = [len(np.unique(rng.integers(0, 100, 20))) / 20 for _ in range(20000)]
    assert abs(np.mean(found) - expected_recall(20, 100)) < 2e-3
