"""Every term against a literal transcription of its formula in numpy, and its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.objective import L1, AuxK, Mse, NormalisedMse, Tilted
from jaxsae.sae import Ctx, DenseCodes, Free, Out, Rows, Selection, SparseCodes

B, D, S = 9, 5, 14


def out(mask=None):
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    y, err, W = 3.0 + make(B, D), make(B, D), make(S, D)
    codes = DenseCodes(jax.nn.relu(make(B, S)))
    aux = SparseCodes(jnp.abs(make(B, 3)), jnp.asarray(rng.integers(0, S, (B, 3)), jnp.int32), S)
    sel = Selection(codes, aux=aux)
    mask = jnp.ones(B) if mask is None else mask
    sse = jnp.sum(err**2, -1, keepdims=True)
    return Out(Rows(y, y, mask), {"W_dec": W}, sel, err, sse, y - err, Free(S, D))


def ctx(dead=True, **hyper):
    since = jnp.full(S, 100 if dead else 0, jnp.int32)
    return Ctx(
        jnp.int32(0), jax.random.key(0), {"dead_after_tokens": jnp.int32(50), **hyper}, {"fired": {"since": since}}
    )


MASKS = [None, jnp.asarray([1.0] * 6 + [0.0] * 3)]


def arrays(o):
    """numpy float64 copies of the rows that count."""
    on = np.asarray(o.rows.mask) > 0
    f = lambda a: np.asarray(a, np.float64)[on]  # noqa: E731
    return f(o.rows.y), f(o.err), f(o.sel.codes.values), np.asarray(o.p["W_dec"], np.float64), on


@pytest.mark.parametrize("mask", MASKS)
def test_mse_is_summed_over_entries_and_averaged_over_rows(mask):
    o = out(mask)
    _, err, *_ = arrays(o)
    value = Mse().reducer(Mse()(o, ctx()), o.rows.mask)
    np.testing.assert_allclose(value, (err**2).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_normalised_mse_is_centred_on_the_batch_mean(mask):
    o = out(mask)
    y, err, *_ = arrays(o)
    np.testing.assert_allclose(NormalisedMse()(o, ctx()), (err**2).sum() / ((y - y.mean(0)) ** 2).sum(), rtol=1e-5)


@pytest.mark.parametrize("by_norm", [True, False])
def test_l1_weighs_codes_by_decoder_norm(by_norm):
    o = out()
    _, _, z, W, _ = arrays(o)
    norms = np.linalg.norm(W, axis=1) if by_norm else np.ones(S)
    np.testing.assert_allclose(L1(by_norm=by_norm)(o, ctx()), (np.abs(z) * norms).sum(1), rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_auxk_models_the_residual_without_a_bias(mask):
    o = out(mask)
    _, err, _, W, on = arrays(o)
    v, i = np.asarray(o.sel.aux.values, np.float64)[on], np.asarray(o.sel.aux.indices)[on]
    hat = np.einsum("bk,bke->be", v, W[i])
    expected = ((err - hat) ** 2).sum() / ((err - err.mean(0)) ** 2).sum()
    np.testing.assert_allclose(AuxK(3)(o, ctx()), expected, rtol=1e-5)
    assert float(AuxK(3)(o, ctx(dead=False))) == 0.0


def test_tilted_mean_goes_from_mean_to_largest():
    v, mask = jnp.array([1.0, 2.0, 6.0, 50.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(Tilted(1e-3)(v, mask), 3.0, atol=0.01)
    np.testing.assert_allclose(Tilted(50.0)(v, mask), 6.0 - np.log(3) / 50, rtol=1e-5)


def trained_with_dead_latents():
    """A topk state in which half of the latents count as dead."""
    recipe = recipes.topk(D, S, k=2, k_aux=4, dead_after_tokens=50, normalize_activations=False)
    batch = {"x": jax.random.normal(jax.random.key(1), (32, D))}
    state = recipes.init(recipe, jax.random.key(0), batch)
    since = jnp.where(jnp.arange(S) % 2 == 0, 100, 0).astype(jnp.int32)
    return recipe, state.replace(track={**state.track, "fired": {"since": since}}), batch


def auxk_gradient(recipe, state, batch):
    def only_aux(train):
        out = recipe.forward({**train, **recipe.split(state.params)[1]}, batch, recipe.ctx(state))
        return AuxK(4)(out, recipe.ctx(state))

    return jax.grad(only_aux)(recipe.split(state.params)[0])


def test_auxk_trains_encoder_and_atoms_of_dead_latents_and_touches_no_live_one():
    recipe, state, batch = trained_with_dead_latents()
    g = auxk_gradient(recipe, state, batch)
    live = np.arange(S) % 2 == 1
    for name, latent_axis in (("W_enc", 1), ("W_dec", 0), ("b_enc", 0)):
        per_latent = np.abs(np.moveaxis(np.asarray(g[name]), latent_axis, 0)).reshape(S, -1).sum(1)
        assert np.all(per_latent[live] == 0), name
        assert np.any(per_latent[~live] > 0), name


def test_auxk_gradient_equals_finite_differences():
    recipe, state, batch = trained_with_dead_latents()
    g = auxk_gradient(recipe, state, batch)
    ctx_ = recipe.ctx(state)
    residual = recipe.forward(state.params, batch, ctx_).err  # detached: held fixed under the differences

    def loss(W_dec):
        o = recipe.forward({**state.params, "W_dec": W_dec}, batch, ctx_)
        return AuxK(4)(o._replace(err=residual), ctx_)

    eps, W = 1e-2, state.params["W_dec"]
    for i, j in [(0, 1), (4, 3), (12, 0)]:
        step = jnp.zeros_like(W).at[i, j].set(eps)
        slope = (loss(W + step) - loss(W - step)) / (2 * eps)
        np.testing.assert_allclose(g["W_dec"][i, j], slope, rtol=5e-3, atol=2e-4)
