"""The Mosaic GPU kernels against the plain references and `lax.top_k`: interpreted on a CPU.

With `JAX_PLATFORMS=cuda,cpu` the same tests run the compiled kernels on a GPU.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels, recipes
from jaxsae.errors import ConfigError
from jaxsae.kernels import _gpu
from jaxsae.kernels.adam import api as adam_api
from jaxsae.kernels.adam import reference as adam_reference
from jaxsae.kernels.decode_residual_sddmm import api as residual_api
from jaxsae.kernels.encode_topk import api as encode_api
from jaxsae.kernels.sparse_decode import reference as decode_reference
from jaxsae.kernels.sparse_grad import reference as grad_reference

needs_kernels = pytest.mark.skipif(
    jax.__version_info__ < _gpu.OLDEST_JAX, reason="the Pallas GPU kernels need jax 0.11 (Python 3.12)"
)

if jax.__version_info__ >= _gpu.OLDEST_JAX:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from jaxsae.kernels.sparse_decode import pallas_gpu as decode
    from jaxsae.kernels.sparse_grad import pallas_gpu as grad
    from jaxsae.kernels.topk import pallas_gpu as topk


@pytest.fixture
def interpreted():
    """On a GPU nothing is interpreted; there the references are not to round to TF32."""
    on_gpu = jax.default_backend() == "gpu"
    machine = contextlib.nullcontext() if on_gpu else plgpu.force_gpu_interpret_mode()
    with jax.default_matmul_precision("highest"), machine:
        yield


def inputs(batch, k, size, width, dtype=jnp.float32, top=None):
    """values, indices, table, rows; `top` bounds the indices, the first two entries of each row agree."""
    rng = np.random.default_rng(batch * k)
    indices = rng.integers(0, top or size, (batch, k))
    indices[:, 1:2] = indices[:, :1]
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return make(batch, k), jnp.asarray(indices, jnp.int32), make(size, width).astype(dtype), make(batch, width)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


SHAPES = [
    (3, 9, 20, 256, jnp.float32, None),
    (2, 4, 16, 576, jnp.bfloat16, None),  # two spans that overlap
    (4, 7, 30, 131, jnp.float32, 3),  # a width that no vector divides, few latents with many entries
]


@needs_kernels
@pytest.mark.parametrize(("batch", "k", "size", "width", "dtype", "top"), SHAPES)
def test_decode_products_and_sums_equal_the_references(interpreted, batch, k, size, width, dtype, top):
    values, indices, W, rows = inputs(batch, k, size, width, dtype, top)
    expected = decode_reference.sparse_decode(values, indices, W)
    close(decode.decode(values, indices, W), expected)
    close(decode.decode(values, indices, W, rows), rows - expected)
    products = jnp.einsum("be,bke->bk", rows, W[indices].astype(jnp.float32))
    close(decode.dots(rows, indices, W), products)
    dW, sums = grad_reference.sparse_grad(values, indices, rows, size)
    found, found_products = grad.sparse_grad_and_dots(values, indices, rows, W)
    close(found, dW)
    close(found_products, products)
    found, found_sums = grad.sparse_grad(values, indices, rows.astype(dtype), size)
    close(found, grad_reference.sparse_grad(values, indices, rows.astype(dtype), size)[0])
    close(found_sums, sums)


@needs_kernels
def test_sums_in_parts_of_the_width(interpreted, monkeypatch):
    values, indices, W, rows = inputs(3, 9, 20, 768)
    whole = grad.sparse_grad_and_dots(values, indices, rows, W)
    monkeypatch.setattr(grad, "CACHED_BYTES", 3 * 300 * 4)
    assert grad.parts(3, 768, 4) == 3
    for found, expected in zip(grad.sparse_grad_and_dots(values, indices, rows, W), whole, strict=True):
        close(found, expected)


@needs_kernels
def test_sums_repeat_to_the_bit(interpreted):
    values, indices, _, rows = inputs(8, 16, 10, 128, top=2)
    first, second = (grad.sparse_grad(values, indices, rows, 10)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


ROWS = {
    "normal": lambda rng, n: rng.standard_normal((4, n)),
    "tied": lambda rng, n: rng.integers(0, 3, (4, n)),
    "equal": lambda rng, n: np.full((4, n), -1.5),
    "zeros of both signs": lambda rng, n: np.where(rng.random((4, n)) < 0.5, 0.0, -0.0),
    "infinite": lambda rng, n: rng.choice([-np.inf, np.inf, 1.0], (4, n)),
    "nan": lambda rng, n: np.where(rng.random((4, n)) < 0.1, np.nan, rng.standard_normal((4, n))),
}


@needs_kernels
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [128, 300, 2048])
def test_ranking_is_that_of_lax_top_k(interpreted, monkeypatch, rows, size):
    monkeypatch.setattr(topk, "WIDEST", 512)  # so that the widest goes in two stages
    x = np.asarray(ROWS[rows](np.random.default_rng(size), size), np.float32)
    # on the CPU: that of a GPU takes zeros of both signs for equal when k is small
    expected = jax.lax.top_k(jax.device_put(x, jax.devices("cpu")[0]), 5)
    for found, wanted in zip(topk.topk(jnp.asarray(x), 5), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def values_and_gradients(encode, decode, k_aux, dead):
    """Of a loss that reads both lists, through an encoder and a decoder of given implementations."""
    k = jax.random.split(jax.random.key(3), 5)
    B, D, S = 6, 128, 1024
    x, W, b = jax.random.normal(k[0], (B, D)), jax.random.normal(k[1], (D, S)), jax.random.normal(k[2], (S,))
    b_pre, W_dec = jax.random.normal(k[3], (D,)), jax.random.normal(k[4], (S, D)) / D

    def loss(W, b, b_pre, W_dec):
        v, i, v_aux, i_aux = encode(x, W, b, b_pre, jnp.linspace(0.5, 2.0, S), dead, 4, k_aux, False)
        sse, e, second = decode(v, i, W_dec, x, (v_aux, i_aux, jnp.any(dead)))
        return jnp.mean(sse) + jnp.mean(jnp.sin(e)) + jnp.mean((e - second) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(W, b, b_pre, W_dec)


@needs_kernels
@pytest.mark.parametrize(("k_aux", "dead"), [(0, 0), (8, 0), (8, 100)])
def test_a_step_through_the_kernels_has_the_gradients_of_the_reference(interpreted, k_aux, dead):
    encode, decode = encode_api.IMPLEMENTATIONS, residual_api.IMPLEMENTATIONS
    args = (k_aux, jnp.arange(1024) < dead)
    found = values_and_gradients(encode["pallas_gpu"].run, decode["pallas_gpu"].run, *args)
    expected = values_and_gradients(encode["reference"], decode["reference"], *args)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, e)


@needs_kernels
def test_runs_of_a_sweep_are_one_grid(interpreted):
    values, indices, W, rows = inputs(3, 4, 16, 128)
    found = jax.vmap(lambda v: decode.decode(v, indices, W))(jnp.stack([values, 2 * values]))
    close(found[1], 2 * found[0])
    dW, products = jax.vmap(lambda r: grad.sparse_grad_and_dots(values, indices, r, W))(jnp.stack([rows, 3 * rows]))
    close(dW[1], 3 * dW[0])
    close(products[1], 3 * products[0])
    keys = topk.total_order(jnp.stack([rows, -rows]))
    best = jax.vmap(lambda x: topk.ranked(x, 3)[1])(keys)
    np.testing.assert_array_equal(best, jnp.stack([topk.ranked(x, 3)[1] for x in keys]))


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="they run here")
def test_elsewhere_they_are_refused_by_name():
    values, indices, W, rows = inputs(2, 3, 8, 128)
    for op, args in {
        "sparse_decode": (values, indices, W),
        "sparse_grad": (values, indices, rows, 8),
        "decode_residual_sddmm": (values, indices, W, rows),
        "topk": (rows, 3),
    }.items():
        with pytest.raises(ConfigError, match=f"{op}: 'pallas_gpu' runs on gpu, this is cpu; possible: .*xla"):
            getattr(kernels, op)(*args, implementation="pallas_gpu")


@pytest.mark.parametrize(("dtype", "width", "why"), [("float16", 512, "float16"), ("float32", 64, "rows of 128")])
def test_what_a_warpgroup_cannot_hold_is_refused(dtype, width, why):
    assert why in _gpu.objection(dtype, width)


@needs_kernels
@pytest.mark.parametrize(("unit", "turned"), [(False, False), (True, False), (False, True)])
def test_adam_in_place_is_adam(interpreted, unit, turned):
    W, mu, nu, g = (jnp.asarray(np.random.default_rng(i).standard_normal((16, 256)), jnp.float32) for i in range(4))
    W = W / jnp.linalg.norm(W, axis=1, keepdims=True) if unit else W
    args = (W, mu, jnp.abs(nu), g, jnp.float32(0.1), jnp.int32(3), jnp.float32(0.7), 0.9, 0.99, 1e-8, unit, turned)
    found = adam_api._pallas_gpu(*args)
    for a, e in zip(found, adam_reference.adam(*args), strict=True):
        close(a, e)
    many = jax.vmap(lambda lr: adam_api._pallas_gpu(*args[:4], lr, *args[5:]))(jnp.array([0.0, 0.1]))
    for a, e in zip(many, found, strict=True):
        close(a[1], e)


@needs_kernels
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="compares a GPU with the CPU")
@pytest.mark.parametrize("dead_after_tokens", [10**9, 64])
def test_a_training_run_is_that_of_the_cpu(dead_after_tokens):
    recipe = recipes.topk(256, 2048, k=8, lr=1e-3, dead_after_tokens=dead_after_tokens)
    rows = np.random.default_rng(0).standard_normal((5, 64, 256), np.float32)

    def run(device):
        with jax.default_device(device), jax.default_matmul_precision("highest"):  # kernels are chosen for the device
            put = lambda a: jax.device_put(a, device)  # noqa: E731
            state = jax.jit(recipe.init)(put(jax.random.key(0)), {"x": put(rows[0])})
            step = jax.jit(recipe.step)
            for x in rows:
                state, metrics = step(state, {"x": put(x)})
        return jax.tree.map(np.asarray, (state.params, metrics))

    (params, metrics), (expected, expected_metrics) = run(jax.devices()[0]), run(jax.devices("cpu")[0])
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert metrics["loss"] == pytest.approx(expected_metrics["loss"], rel=1e-4)
