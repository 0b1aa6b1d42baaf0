"""Rows and codes that are not finite reach what names them and nothing else: every row op, forward and backward.

Expected values come from loops in numpy over the entries there are.  Inputs are small whole numbers beside the infinite
ones, so that sums are exact in any order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels, parallel
from jaxsae.kernels.decode_residual_sddmm import api as residual_api
from jaxsae.kernels.sparse_adam import api as adam_api
from jaxsae.kernels.sparse_decode import api as decode_api
from jaxsae.kernels.sparse_decode import few, xla
from jaxsae.kernels.sparse_grad import api as grad_api

needs_pallas = pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="the Pallas TPU kernels need jax 0.10")

#: Entries per row and latents: scanned; multiplied densely; multiplied with the few rows that are named.
LISTS = {"short": (3, 400), "long": (9, 40), "few named": (8, 256)}
#: The interpreter takes a millisecond per access of memory, so the TPU kernels get one small size.
WAYS = [("xla", name) for name in LISTS] + [
    ("reference", "short"),
    pytest.param("pallas_tpu", "small", marks=needs_pallas),
]
LISTS["small"] = (2, 8)
B, E = 4, 5


def inputs(lists, case):
    """values, indices, W, g, e0 with something that is not finite; latents 0 and 1 are named by nobody."""
    k, size = LISTS[lists]
    rng = np.random.default_rng(k)
    whole = lambda *shape: rng.integers(1, 5, shape) * rng.choice([-1.0, 1.0], shape)  # noqa: E731
    values, W, g, e0 = whole(B, k), whole(size, E), whole(B, E), whole(B, E)
    indices = rng.integers(2, 8 if lists == "few named" else size, (B, k))
    indices[:, -1] = indices[:, 0]
    indices[0, 1] = 2
    indices[1:][indices[1:] == 2] = 3  # row 0 alone names latent 2
    CASES[case](values, W, g, e0)
    return values, indices, W, g, e0


def put(which, at, entry):
    def change(*arrays):
        arrays[which][at] = entry

    return change


VALUES, TABLE, GRADIENT, TARGET = range(4)
CASES = {
    "an unnamed row is infinite": put(TABLE, 0, np.inf),
    "an unnamed row is NaN": put(TABLE, 1, np.nan),
    "a named row is infinite": put(TABLE, 2, np.inf),
    "a named row has a NaN": put(TABLE, (2, 1), np.nan),
    "a row of the batch has an infinite gradient": put(GRADIENT, 1, -np.inf),
    "a row of the batch has a NaN in its gradient": put(GRADIENT, (2, 3), np.nan),
    "a target is infinite": put(TARGET, (3, 2), np.inf),
    "a target is NaN": put(TARGET, 3, np.nan),
    "a code is infinite": put(VALUES, (1, 0), np.inf),
    "a code is NaN": put(VALUES, (1, 1), np.nan),
}


def decoded(values, indices, W):
    y = np.zeros((len(values), W.shape[1]))
    for b, j in np.ndindex(values.shape):
        y[b] += values[b, j] * W[indices[b, j]]
    return y


def products(g, indices, W):
    return np.array([[g[b] @ W[i] for i in indices[b]] for b in range(len(g))])


def summed(values, indices, rows, size):
    dW = np.zeros((size, rows.shape[1]))
    for b, j in np.ndindex(values.shape):
        dW[indices[b, j]] += values[b, j] * rows[b]
    return dW


def function(api, name):
    found = api.IMPLEMENTATIONS[name]
    return getattr(found, "run", found)


def with_gradients(f, values, W, cotangents, *rest):
    """f's results, and its gradients with respect to values, W and the rest."""
    out, back = jax.vjp(f, values, W, *rest)
    return out, back(cotangents)


@functools.cache
def compiled(op, name):
    """The op with its gradients, compiled once for all cases."""
    if op == "decode":
        run = function(decode_api, name)
        return jax.jit(lambda v, i, W, g: with_gradients(lambda v, W: run(v, i, W, None), v, W, g))
    if op == "residual":
        run = function(residual_api, name)
        return jax.jit(lambda v, i, W, g, e0: with_gradients(lambda v, W, e0: run(v, i, W, e0, None)[:2], v, W, g, e0))
    if op == "sums":
        return jax.jit(function(grad_api, name), static_argnums=3)
    step = function(adam_api, name)
    rest = 0.5, 0.5, 1e-8, False
    return jax.jit(lambda W, mu, nu, v, i, g: step(W, mu, nu, v, i, g, jnp.float32(0.5), jnp.int32(1), *rest))


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def same(found, expected):
    np.testing.assert_array_equal(np.asarray(found), np.float32(expected))


def test_the_lists_are_what_their_names_say():
    assert [xla.is_long(*LISTS[n]) for n in ("short", "long", "few named")] == [False, True, True]
    assert few.most(*LISTS["few named"]) > 6


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "lists"), WAYS)
@pytest.mark.usefixtures("tpu_interpreter")
class TestEveryWay:
    """Each op in each implementation that can run or be interpreted here."""

    def test_decode(self, name, lists, case):
        values, indices, W, g, _ = inputs(lists, case)
        y, (d_values, dW) = compiled("decode", name)(*f32(values), indices, *f32(W, g))
        same(y, decoded(values, indices, W))
        same(d_values, products(g, indices, W))
        same(dW, summed(values, indices, g, len(W)))

    def test_residual(self, name, lists, case):
        """The gradient goes to the squared norm as well as to the residual."""
        values, indices, W, g, e0 = inputs(lists, case)
        cotangents = jnp.ones(B), f32(g)[0]
        (sse, e), (d_values, dW, d_e0) = compiled("residual", name)(
            *f32(values), indices, *f32(W), cotangents, *f32(e0)
        )
        expected = e0 - decoded(values, indices, W)
        same(e, expected)
        same(sse, (expected**2).sum(1))
        G = g + 2 * expected
        same(d_e0, G)
        same(dW, summed(values, indices, -G, len(W)))
        in_two = -products(g, indices, W) - 2 * products(expected, indices, W)  # as a kernel that holds rows sums them
        same(d_values, in_two if name == "pallas_tpu" else -products(G, indices, W))

    def test_row_sums(self, name, lists, case):
        values, indices, W, g, _ = inputs(lists, case)
        dW, sums = compiled("sums", name)(*f32(values), indices, *f32(g), len(W))
        same(dW, summed(values, indices, g, len(W)))
        same(sums, summed(values, indices, np.ones((B, 1)), len(W))[:, 0])

    def test_the_step_of_adam_takes_those_sums(self, name, lists, case):
        values, indices, W, g, _ = inputs(lists, case)
        _, mu, nu = compiled("adam", name)(*f32(W, np.zeros_like(W), np.zeros_like(W), values), indices, *f32(g))
        G = summed(values, indices, g, len(W))
        same(mu, G / 2)
        same(nu, G**2 / 2)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("case", CASES)
def test_the_path_equals_autodiff_of_its_reference(case):
    values, indices, W, g, e0 = inputs("short", case)
    main = jnp.array([0, 1, 2, 3])

    def gradients(name):
        f = lambda v, W, e0: kernels.path(v, jnp.asarray(indices), W, e0, main, implementation=name)  # noqa: E731
        out, back = jax.vjp(f, *f32(values, W, e0))
        return *out, *back((jnp.ones((B, 4)), f32(g)[0]))

    for a, e in zip(gradients("xla"), gradients("reference"), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("lists", ["short", "long"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("paired", [False, True])
def test_on_a_mesh_the_latents_of_others_stay_out(case, lists, paired, monkeypatch):
    """Every device has an unnamed first latent that may be infinite; entries of others must not reach it."""
    from jaxsae.kernels.sharded import sums

    values, indices, W, g, _ = inputs(lists, case)
    W[:: len(W) // 4] = W[0]  # the first latent of each of four devices
    indices[indices % (len(W) // 4) == 0] += 1
    monkeypatch.setattr(sums, "pays_in_pairs", lambda *sizes: paired)

    def run(values, W, g):
        y, back = jax.vjp(lambda v, W: kernels.sparse_decode(v, jnp.asarray(indices), W), values, W)
        return y, *back(g)

    with parallel.use(parallel.make_mesh(2, 4, jax.devices()[:8])):
        y, d_values, dW = jax.jit(run)(*f32(values, W, g))
    same(y, decoded(values, indices, W))
    same(d_values, products(g, indices, W))
    same(dW, summed(values, indices, g, len(W)))
