"""Every implementation that runs here equals the reference to the last bit, on rows made to be awkward.

Inputs are small integers (or zeros of both signs, infinities, NaN), so that sums are exact in any order: whatever
differs is a fault of the selection or of the bookkeeping, never rounding.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxsae import kernels
from jaxsae.errors import ConfigError
from jaxsae.kernels import _dispatch, _gpu
from jaxsae.kernels.encode_topk import api as encode_api
from jaxsae.kernels.encode_topk import pallas_tpu, reference
from jaxsae.kernels.encode_topk._tiles import Depth, Tiles
from jaxsae.kernels.encode_topk.api import IMPLEMENTATIONS as ENCODE
from jaxsae.kernels.sparse_decode import xla as sparse_xla
from jaxsae.kernels.sparse_decode.api import IMPLEMENTATIONS as DECODE
from jaxsae.kernels.topk.api import IMPLEMENTATIONS as TOPK
from jaxsae.kernels.topk.xla_counting import refuse


def here(available):
    """Names to test on this platform; the reference is what they are tested against."""
    platform = _dispatch.device()[0]
    whole = [(n, i if isinstance(i, _dispatch.Implementation) else None) for n, i in available.items()]
    return [n for n, i in whole if n != "reference" and (i is None or i.objection(platform, {}, "") is None)]


def refused(op, available, name, shape):
    """Whether an implementation refuses a size, and says so where it is named; then there is nothing to compare."""
    whole = available[name]
    if not isinstance(whole, _dispatch.Implementation):
        return False
    why = whole.objection(_dispatch.device()[0], shape, "float32")
    if why is not None:
        with pytest.raises(ConfigError, match=why):
            _dispatch.choose(op, name, available, shape, jnp.float32)
    return why is not None


#: Pre-activations of one row, from a generator and a size.
ROWS = {
    "spread": lambda r, s: r.permutation(s) - s // 2,
    "tied": lambda r, s: r.integers(-3, 4, s),
    "all equal": lambda r, s: np.full(s, 2.0),
    "all negative": lambda r, s: -r.integers(1, 9, s),
    "signed zeros": lambda r, s: np.where(r.random(s) < 0.5, -0.0, 0.0),
    "few positive among signed zeros": lambda r, s: np.where(np.arange(s) % 97 == 5, 1.0, ROWS["signed zeros"](r, s)),
    "infinite": lambda r, s: np.where(r.random(s) < 0.1, np.inf, r.integers(-3, 4, s)),
    "minus infinite": lambda r, s: np.where(r.random(s) < 0.95, -np.inf, r.integers(-3, 4, s)),
    "NaN": lambda r, s: np.where(r.random(s) < 0.02, np.nan, r.integers(-3, 4, s)),
    "skewed": lambda r, s: np.where(np.arange(s) < s // 8, 100, 0) + r.integers(0, 50, s),
    "best ones last": lambda r, s: np.arange(s),
}


def equal(ours, reference):
    for a, e in zip(ours, reference, strict=True):
        np.testing.assert_array_equal(a, e)
        assert np.array_equal(np.signbit(a), np.signbit(e)), "zeros of another sign"


@functools.cache
def fused(second: bool):
    """The TPU encoder in the interpreter, tiles so small that rows and columns cross their borders."""
    lists = (Depth(128, 4, 128, 6), Depth(128, 4, 128, 7))[: 1 + second]
    run = {"tiles": Tiles(16, 256, 128, lists, None), "interpret": True}
    module = SimpleNamespace(
        forward=functools.partial(pallas_tpu.forward, **run),
        backward=functools.partial(pallas_tpu.backward, interpret=True),
    )
    return encode_api._with_sparse_vjp(module)


def interpreted(x, W, b, b_pre, scale, dead, k, k_aux, signed):
    return fused(k_aux > 0)(x, W, b, b_pre, scale, dead, k, k_aux, signed)


class TestTopk:
    """`topk`: values and indices."""

    @pytest.mark.parametrize("implementation", here(TOPK))
    @pytest.mark.parametrize("case", ROWS)
    @pytest.mark.parametrize(("size", "k"), [(2048, 4), (2048, 16), (1300, 7), (96, 96)])
    def test_equals_the_reference(self, implementation, case, size, k):
        if refused("topk", TOPK, implementation, {"B": 3, "S": size, "K": k}):
            return
        rng = np.random.default_rng(0)
        x = jnp.asarray(np.stack([ROWS[case](rng, size) for _ in range(3)]), jnp.float32)
        equal(kernels.topk(x, k, implementation=implementation), kernels.topk(x, k, implementation="reference"))


class TestEncodeTopk:
    """`encode_topk`: both lists, and the gradient of everything that has one."""

    @staticmethod
    def both(implementation, x, W, b, scale, dead, k, k_aux, signed):
        b_pre = jnp.zeros(len(W))
        call = jax.jit(kernels.encode_topk, static_argnums=(6, 7, 8), static_argnames="implementation")
        operands = (x, W, b, b_pre, scale, dead, k, k_aux, signed)
        return (call(*operands, implementation=name) for name in (implementation, "reference"))

    @pytest.mark.parametrize("implementation", here(ENCODE))
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("case", ROWS)
    @pytest.mark.parametrize(("size", "k"), [(2048, 4), (1300, 7)])
    def test_equals_the_reference(self, implementation, case, signed, size, k):
        """One column of inputs, so that zeros keep their sign and infinities meet no zero."""
        if refused("encode_topk", ENCODE, implementation, {"B": 3, "D": 1, "S": size, "K": k}):
            return
        rng = np.random.default_rng(1)
        W = jnp.asarray(ROWS[case](rng, size), jnp.float32)[None]
        x, b = jnp.array([[1.0], [2.0], [-1.0]]), jnp.full(size, -0.0)
        dead = jnp.asarray(rng.random(size) < 0.2)
        equal(*self.both(implementation, x, W, b, jnp.ones(size), dead, k, 5, signed))

    @pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10")
    @pytest.mark.parametrize("scaled", [False, True])
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("case", ROWS)
    def test_the_tpu_kernel_equals_the_reference(self, case, signed, scaled):
        """The same column of inputs; +0 ranks before -0 as everywhere, though the kernel compares floats."""
        rng = np.random.default_rng(1)
        W = jnp.asarray(ROWS[case](rng, 700), jnp.float32)[None]
        x, b, dead = jnp.array([[1.0], [2.0], [-1.0]]), jnp.full(700, -0.0), jnp.asarray(rng.random(700) < 0.2)
        operands = x, W, b, jnp.zeros(1), jnp.ones(700) if scaled else None, dead, 4, 5, signed
        equal(jax.jit(interpreted, static_argnums=(6, 7, 8))(*operands), reference.encode_topk(*operands))

    @pytest.mark.skipif(jax.__version_info__ < _gpu.OLDEST_JAX, reason="the Pallas GPU kernels need jax 0.11")
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("case", ROWS)
    def test_the_gpu_kernel_equals_the_reference(self, case, signed):
        """Interpreted, over the widths that it takes in one stage and in two."""
        from jax.experimental.pallas import mosaic_gpu as plgpu

        for size in (700, 4352):
            rng = np.random.default_rng(1)
            W = jnp.asarray(ROWS[case](rng, size), jnp.float32)[None]
            x, b, dead = jnp.array([[1.0], [-1.0]]), jnp.full(size, -0.0), jnp.asarray(rng.random(size) < 0.2)
            operands = x, W, b, jnp.zeros(1), jnp.ones(size), dead, 4, 5, signed
            with plgpu.force_gpu_interpret_mode():
                found = jax.jit(ENCODE["pallas_gpu"].run, static_argnums=(6, 7, 8))(*operands)
            equal(found, reference.encode_topk(*operands))

    @pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10")
    def test_zeros_that_a_scale_makes_keep_their_order_in_the_tpu_kernel(self):
        """Negative numbers times a scale of 0 are -0 and come after +0."""
        rng = np.random.default_rng(2)
        pre, scale = rng.integers(-3, 1, 700), np.where(np.arange(700) % 5 == 2, 1.0, 0.0)
        zeros, one = jnp.zeros(700), jnp.ones((2, 1))
        operands = one, jnp.asarray(pre, jnp.float32)[None], zeros, jnp.zeros(1), jnp.asarray(scale), zeros > 0, 4
        equal(jax.jit(interpreted, static_argnums=(6, 7, 8))(*operands, 0, False),
              reference.encode_topk(*operands, 0, False))  # fmt: skip

    @pytest.mark.parametrize("implementation", here(ENCODE))
    @settings(max_examples=8, deadline=None)
    @given(
        rows=st.integers(1, 5),
        size=st.sampled_from([64, 384, 1024, 1300, 2048, 2304]),
        k=st.integers(1, 6),
        k_aux=st.sampled_from([0, 3]),
        signed=st.booleans(),
        some_dead=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_drawn_shapes_with_gradients(self, implementation, rows, size, k, k_aux, signed, some_dead, seed):
        assume(not refused("encode_topk", ENCODE, implementation, {"B": rows, "D": 3, "S": size, "K": k}))
        rng = np.random.default_rng(seed)
        integers = lambda *shape: jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)  # noqa: E731
        x, W, b, b_pre = integers(rows, 3), integers(3, size), integers(size), integers(3)
        scale, dead = 2.0 ** jnp.asarray(rng.integers(-1, 2, size)), jnp.asarray(rng.random(size) < 0.1 * some_dead)
        g, g_aux = integers(rows, k), integers(rows, k_aux)

        def both_lists(name):
            def f(x, W, b, b_pre):
                out = kernels.encode_topk(x, W, b, b_pre, scale, dead, k, k_aux, signed, implementation=name)
                return jnp.sum(out[0] * g) + jnp.sum(out[2] * g_aux), out

            grads, out = jax.jit(jax.grad(f, argnums=(0, 1, 2, 3), has_aux=True))(x, W, b, b_pre)
            # Where nothing is dead the second list is absent: its values are 0 and its indices mean nothing.
            out = (*out[:3], jnp.where(jnp.any(dead), out[3], 0))
            return *out, *(a + 0.0 for a in grads)  # a sum of nothing may be a zero of either sign

        for a, e in zip(both_lists(implementation), both_lists("reference"), strict=True):
            np.testing.assert_array_equal(a, e)

    def test_counting_is_used_at_these_shapes(self):
        """Otherwise the cases above would compare the plain way with itself."""
        assert refuse({"S": 2048, "K": 4}, "float32") is None
        assert refuse({"S": 1300, "K": 7}, "float32") is not None


def test_sums_by_sorted_entries_equal_a_loop():
    """At this size entries are sorted by latent; most latents have several, some none."""
    rng = np.random.default_rng(0)
    values, rows = rng.integers(-4, 5, (128, 32)), rng.integers(-4, 5, (128, 3))
    indices = rng.integers(0, 3000, (128, 32)) // rng.integers(1, 60, (128, 1))
    expected = np.zeros((4096, 3))
    np.add.at(expected, indices, values[:, :, None] * rows[:, None])
    start = jnp.ones((4096, 3)), jnp.ones(4096)
    args = jnp.asarray(values, jnp.float32), jnp.asarray(indices), jnp.asarray(rows, jnp.float32)
    dW, sums = sparse_xla.outer_sum(*args, 4096, start)
    np.testing.assert_array_equal(dW, expected + 1)
    np.testing.assert_array_equal(sums, np.bincount(indices.ravel(), values.ravel(), 4096) + 1)
    assert values.size % sparse_xla.CHUNK == 0


class TestSparseDecode:
    """`sparse_decode`: repeated indices, latents without an entry, no live codes, both gradients."""

    @pytest.mark.parametrize("implementation", here(DECODE))
    @settings(max_examples=8, deadline=None)
    @given(
        rows=st.integers(1, 5),
        size=st.sampled_from([7, 64, 513]),
        k=st.integers(1, 9),
        live=st.sampled_from([None, True, False]),
        seed=st.integers(0, 10**6),
    )
    def test_drawn_shapes_with_gradients(self, implementation, rows, size, k, live, seed):
        rng = np.random.default_rng(seed)
        integers = lambda *shape: jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)  # noqa: E731
        values, W, g = integers(rows, k), integers(size, 6), integers(rows, 6)
        indices = rng.integers(0, size, (rows, k))
        indices[:, -1] = indices[:, 0]
        flag = None if live is None else jnp.array(live)

        def with_gradients(name):
            def f(values, W):
                y = kernels.sparse_decode(values, jnp.asarray(indices), W, live=flag, implementation=name)
                return jnp.sum(y * g), y

            grads, y = jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(values, W)
            return y, *grads

        for a, e in zip(with_gradients(implementation), with_gradients("reference"), strict=True):
            np.testing.assert_array_equal(a, e)
