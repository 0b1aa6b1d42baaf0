"""The plain level through the fused op: dense autodiff of the plain formulas is the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import kernels
from jaxsae.kernels.decode_residual_sddmm import api
from jaxsae.kernels.sparse_decode import xla as decode_xla
from jaxsae.recipes import topk
from jaxsae.sae import Free, Normalised, Tied, Unit, levels
from jaxsae.sae.codes import DenseCodes, SparseCodes
from jaxsae.sae.records import Out

B, D, S, K = 7, 5, 11, 3


def out_of(dictionary, codes, p):
    nothing = None
    sel = type("Selection", (), {"codes": codes})()
    return Out(type("Rows", (), {"x": None})(), p, sel, nothing, nothing, nothing, dictionary, levels.One())


@pytest.mark.parametrize("make", [Free, Unit, Normalised, Tied])
def test_errors_and_gradients_equal_dense_autodiff(make):
    rng = np.random.default_rng(0)
    dictionary, normal = make(S, D), lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    leaf, axes = next(iter(dictionary.axes.items()))
    p = {leaf: normal(*({"S": S, "D": D, "E": D}[a] for a in axes))}
    indices = jnp.asarray(rng.integers(0, S, (B, K)), jnp.int32).at[:, 1].set(0)
    values, e0, weigh = normal(B, K), normal(B, D), normal(B)

    def loss(p, values, e0, codes_of):
        sse, err = levels.One().read(out_of(dictionary, codes_of(values), p), e0, None)
        assert sse.shape == (B, 1)
        return jnp.sum(weigh * sse[:, 0]) + jnp.sum(jnp.sin(err))

    def sparse(values):
        return SparseCodes(values, indices, S)

    def dense(values):
        return DenseCodes(jnp.zeros((B, S)).at[jnp.arange(B)[:, None], indices].add(values))

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    found, want = run(p, values, e0, sparse), run(p, values, e0, dense)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


def test_a_dictionary_with_a_decoding_of_its_own_keeps_it():
    class Doubled(Free):
        def decode(self, p, codes):
            return 2 * codes.decode(self.atoms(p))

    p, codes = {"W_dec": jnp.eye(2)}, SparseCodes(jnp.array([[1.0]]), jnp.array([[1]]), 2)
    _, err = levels.One().read(out_of(Doubled(2, 2), codes, p), jnp.zeros((1, 2)), None)
    assert err.tolist() == [[0.0, -2.0]]


def test_a_training_step_takes_its_residual_and_its_products_from_the_op(monkeypatch):
    """Once per step, with no gradient to the residual itself: an implementation that holds rows fetches them once."""
    seen = []

    class Spy:
        residual = api.xla.residual

        @staticmethod
        def row_grads(values, indices, rows, size):
            return decode_xla.outer_sum(values, indices, rows, size)[0]

        @staticmethod
        def residual_and_dots(values, indices, W, e0):
            seen.append("forward")
            e = api.xla.residual(values, indices, W, e0)
            return e, decode_xla.dots(e, indices, W)

        @staticmethod
        def dots(g, indices, W):
            seen.append("again")
            return decode_xla.dots(g, indices, W)

    monkeypatch.setitem(api.IMPLEMENTATIONS, "spy", api.differentiable(Spy))
    recipe, batch = topk(d_in=D, d_sae=16, k=K), {"x": jax.ShapeDtypeStruct((B, D), jnp.float32)}
    state = jax.eval_shape(recipe.init, jax.random.key(1), batch)
    with kernels.using(decode_residual_sddmm="spy"):
        jax.eval_shape(recipe.grads, state, batch)
    assert seen == ["forward"]
