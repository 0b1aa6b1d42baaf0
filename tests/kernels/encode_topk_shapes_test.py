"""The fused TPU kernel at shapes that nobody chose, and its backward pass, in the interpreter against plain references.

Few columns per tile, so that every shape drawn crosses the borders of tiles, strips and blocks somewhere.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsae.kernels.encode_topk import api, reference, xla
from jaxsae.kernels.encode_topk._tiles import Depth, Tiles

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the kernels need jax >= 0.10")

if jax.__version_info__ >= (0, 10):
    from jax.experimental.pallas import tpu as pltpu

    from jaxsae.kernels.encode_topk import pallas_tpu

    INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan")

D = 6
#: Two levels keep one entry per group and its bound: rows whose best two meet in one of 128 groups must be repaired.
SHALLOW, DEEP = Depth(128, 2, 128, 2), Depth(128, 5, 128, 6)

KINDS = ("eighths", "equal", "negative", "signed zeros", "one NaN", "one infinite", "one group")


def draw(kind, B, S, seed):
    """x, W, b, b_pre, dead with products that are exact in f32, so that lists can be asked to be equal."""
    rng = np.random.default_rng(seed)
    eighths = lambda *shape: rng.integers(-8, 9, shape).astype(np.float32) / 8  # noqa: E731
    x, W, b, b_pre, dead = eighths(B, D), eighths(D, S), eighths(S), eighths(D), rng.random(S) < 0.3
    if kind == "equal":
        x, b, b_pre = np.zeros_like(x), np.full_like(b, 0.5), np.zeros_like(b_pre)
    if kind == "negative":
        b = b - 60
    if kind == "signed zeros":
        W, b = np.where(W > 0, 0.0, -0.0).astype(np.float32), np.where(b > 0, 0.0, -0.0).astype(np.float32)
    if kind in ("one NaN", "one infinite"):
        x[seed % B, 0] = np.nan if kind == "one NaN" else np.inf
        W, b_pre = np.abs(W) + 0.125, np.zeros_like(b_pre)
    if kind == "one group":  # all of a row's best are equal mod 128: no certificate holds
        b[::128] += 50
    return tuple(jnp.asarray(a) for a in (x, W, b, b_pre, dead))


@functools.cache
def forward(B, S, k, k_aux, signed, depth):
    tiles = Tiles(16, 256, 128, (depth, DEEP)[: 2 if k_aux else 1], None)

    def run(x, W, b, b_pre, dead):
        return pallas_tpu.forward(x, W, b, b_pre, None, dead, k, k_aux, signed, tiles=tiles, interpret=True)

    return jax.jit(run)


def check_lists(kind, B, S, k, k_aux, signed, depth, seed):
    args = draw(kind, B, S, seed)
    found = forward(B, S, k, k_aux, signed, depth)(*args)
    want = reference.lists(*args[:4], None, args[4], k, k_aux, signed)
    for a, e in zip(found, want, strict=True):
        np.testing.assert_array_equal(a, e)


#: Rows, latents, k, k_aux, signed, depth: less than a tile, one less, one more, several; few, as each is compiled.
FORMS = (
    (1, 130, 3, 0, False, DEEP),
    (15, 511, 4, 3, False, DEEP),
    (17, 513, 5, 0, True, SHALLOW),
    (33, 700, 2, 4, True, DEEP),
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)  # the first of each form compiles
@given(st.sampled_from(KINDS), st.sampled_from(FORMS), st.integers(0, 2**16))
def test_any_shape_and_any_values_give_the_lists_of_the_reference(kind, form, seed):
    check_lists(kind, *form, seed)


@pytest.mark.parametrize("kind", ["eighths", "one NaN"])
def test_rows_that_two_levels_cannot_certify_are_encoded_again(kind):
    check_lists(kind, 17, 300, 5, 0, False, SHALLOW, 3)


# The backward pass: the segment kernel into the layout of W.


def gradients(backward, args, k, k_aux, seed, **options):
    x, W, b, b_pre, dead = args
    rng = np.random.default_rng(seed)
    lists = reference.lists(x, W, b, b_pre, None, dead, k, k_aux, False)
    g = jnp.asarray(rng.standard_normal((len(x), k)), jnp.float32)
    g_aux = jnp.asarray(rng.standard_normal((len(x), k_aux)), jnp.float32)
    residuals = x, W, b_pre, lists[4], lists[1], lists[3]
    found = backward(k, k_aux, False, residuals, (g, None, g_aux, None), **options)

    def loss(x, W, b, b_pre):
        v, _, va, _ = reference.encode_topk(x, W, b, b_pre, None, dead, k, k_aux, False)
        return jnp.sum(v * g) + jnp.sum(va * g_aux)

    return found[:4], jax.grad(loss, argnums=(0, 1, 2, 3))(x, W, b, b_pre)


def check_gradients(B, S, k, k_aux, share, seed):
    """`share` of the latents is dead; a small S names latents often, a large one leaves most segments empty."""
    args = draw("eighths", B, S, seed)
    args = (*args[:4], jnp.asarray(np.random.default_rng(seed).random(S) < share))
    for backward, options in ((pallas_tpu.backward, {"interpret": INTERPRET}), (xla.backward, {})):
        found, want = gradients(backward, args, k, k_aux, seed, **options)
        for a, e in zip(found, want, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * max(1.0, float(jnp.abs(e).max())))


@pytest.mark.parametrize(("k_aux", "share"), [(0, 0.0), pytest.param(2, 0.5, marks=pytest.mark.slow)])
def test_the_backward_pass_equals_autodiff_of_the_reference(k_aux, share):
    check_gradients(5, 40, 3, k_aux, share, 1)


@functools.cache
def op(k_aux):
    """Kernel and segment kernel as one differentiable function, as the api makes it."""
    tiles = Tiles(16, 256, 128, (DEEP, DEEP)[: 2 if k_aux else 1], None)
    module = SimpleNamespace(
        forward=functools.partial(pallas_tpu.forward, tiles=tiles, interpret=True),
        backward=functools.partial(pallas_tpu.backward, interpret=True),
    )
    run = api._with_sparse_vjp(module)

    def loss(x, W, b, b_pre, dead, g, g_aux):
        values, index, aux_values, aux = run(x, W, b, b_pre, None, dead, 3, k_aux, False)
        return jnp.sum(values * g) + jnp.sum(aux_values * g_aux), (index, aux)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize("k_aux", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_on_every_kind_of_rows_is_that_of_a_loop(kind, k_aux):
    """From the op's own lists; an entry of a NaN or infinite row spoils its own latents and no others."""
    args = draw(kind, 9, 130, 5)
    x, W, _, b_pre, dead = (np.asarray(a) for a in args)
    rng = np.random.default_rng(5)
    g, g_aux = (rng.integers(-4, 5, (9, n)).astype(np.float32) for n in (3, k_aux))
    found, (index, aux) = op(k_aux)(*args, g, g_aux)
    dx, dW, db = np.zeros_like(x), np.zeros_like(W), np.zeros(130, np.float32)
    for indices, weights in ((index, g), (aux, g_aux)):
        for row, (latents, weight) in enumerate(zip(np.asarray(indices), weights, strict=True)):
            for s, v in zip(latents, weight, strict=True):
                dx[row] += v * W[:, s]
                dW[:, s] += v * (x[row] - b_pre)
                db[s] += v
    assert not k_aux or np.all(dead[np.asarray(aux)])  # more are dead than are asked for
    for a, e in zip(found, (dx, dW, db, -W @ db), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(1, 9, 4, 0), (5, 130, 3, 2), (9, 300, 2, 5), (7, 8, 8, 1)]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 2**16),
)
def test_the_backward_pass_at_any_shape(sizes, share, seed):
    check_gradients(*sizes, share, seed)
