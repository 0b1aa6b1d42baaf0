"""The frozen object: shapes, forms, pytree behaviour, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import Meta, SparseCodes, make_sae

D, S = 6, 24


def arrays(seed=0, **extra):
    k = jax.random.split(jax.random.key(seed), 4)
    made = {"W_enc": (D, S), "b_enc": (S,), "W_dec": (S, D), "b_dec": (D,)}
    return {n: jax.random.normal(key, shape) for (n, shape), key in zip(made.items(), k, strict=True)} | extra


def x_of(*lead):
    return jax.random.normal(jax.random.key(9), (*lead, D))


def test_relu_topk_and_threshold_forms_by_hand():
    p, x = arrays(), x_of(7)
    pre = np.asarray((x - p["b_dec"][None]) @ p["W_enc"] + p["b_enc"][None])
    relu = np.maximum(pre, 0)
    np.testing.assert_allclose(make_sae(p, subtract_b_dec=True).encode(x).dense(), relu, rtol=1e-5, atol=1e-5)
    kept = np.sort(pre, 1)[:, -4:-3]
    top = make_sae(p, subtract_b_dec=True, k=4)
    assert isinstance(top.encode(x), SparseCodes)
    np.testing.assert_allclose(top.encode(x).dense(), np.where(pre >= kept, relu, 0), rtol=1e-5, atol=1e-5)
    theta = np.linspace(-1, 1, S)
    jump = make_sae({**p, "threshold": jnp.asarray(theta, jnp.float32)}, subtract_b_dec=True)
    np.testing.assert_allclose(jump.encode(x).dense(), np.where(pre > theta, relu, 0), rtol=1e-5, atol=1e-5)


def test_signed_ranks_keep_signs_and_decoder_norms_can_rank():
    p, x = arrays(), x_of(7)
    pre = np.asarray(x @ p["W_enc"] + p["b_enc"][None])
    signed = np.asarray(make_sae(p, k=4, signed=True).encode(x).dense())
    np.testing.assert_array_equal(signed != 0, np.abs(pre) >= np.sort(np.abs(pre), 1)[:, -4:-3])
    assert (signed < 0).any()
    scores = pre * np.linalg.norm(p["W_dec"], axis=1)
    by_norm = np.asarray(make_sae(p, k=4, by_norm=True).encode(x).dense())
    np.testing.assert_array_equal(by_norm != 0, (scores >= np.sort(scores, 1)[:, -4:-3]) & (pre > 0))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_any_leading_axes(lead):
    sae, x = make_sae(arrays(), k=4), x_of(*lead)
    assert sae(x).shape == (*lead, D)
    assert sae.encode(x).dense().shape == (*lead, S)
    np.testing.assert_allclose(sae(x).reshape(-1, D), sae(x.reshape(-1, D)), rtol=1e-6)


def test_it_is_a_pytree_that_jits_vmaps_and_differentiates():
    sae, x = make_sae(arrays(), k=4), x_of(5)
    np.testing.assert_allclose(jax.jit(lambda s, x: s(x))(sae, x), sae(x), rtol=1e-5, atol=1e-6)
    two = jax.tree.map(lambda a: jnp.stack([a, a]), sae)
    np.testing.assert_allclose(jax.vmap(lambda s: s(x))(two)[1], sae(x), rtol=1e-5, atol=1e-6)
    grad = jax.grad(lambda s: jnp.sum(s(x) ** 2), allow_int=True)(sae)
    assert np.any(grad.params["W_enc"])


def test_decode_is_linear_in_edited_codes():
    sae, x = make_sae(arrays()), x_of(5)
    codes = sae.encode(x)
    doubled = codes.replace(values=2 * codes.values)
    direct = sae(x) + codes.values @ sae.W_dec
    np.testing.assert_allclose(sae.decode(doubled, like=x), direct, rtol=1e-4, atol=1e-4)


def test_bf16_weights_compute_in_bf16():
    sae = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.ndim else a, make_sae(arrays(), k=4))
    assert sae.dtype == jnp.bfloat16
    assert sae.encode(x_of(3)).values.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {k: v for k, v in p.items() if k != "W_dec"}, "needs the array 'W_dec'"),
        (lambda p: {**p, "b_enc": jnp.zeros(S + 1)}, r"'b_enc' \[S\] should have shape \(24,\), found \(25,\)"),
        (lambda p: {**p, "W_enc": p["W_enc"].T}, "should have shape"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        make_sae(change(arrays()))


def test_refusals_name_the_numbers():
    with pytest.raises(ConfigError, match="between 1 and d_sae = 24, found 25"):
        make_sae(arrays(), k=25)
    with pytest.raises(ConfigError, match=r"width 6, found an array of shape \(3, 5\)"):
        make_sae(arrays()).encode(jnp.zeros((3, 5)))


def trained(recipe, steps=30):
    batches = [{"x": jax.random.normal(jax.random.key(i), (64, D))} for i in range(steps)]
    state = recipes.init(recipe, jax.random.key(0), batches[0])
    for batch in batches:
        state, _ = recipes.step(recipe, state, batch)
    return state, batches[0]["x"]


def test_the_threshold_form_of_a_row_rank_has_about_its_l0_and_says_so():
    recipe = recipes.topk(D, S, k=4, lr=0.0)  # weights at rest, so that the average is of one distribution
    state, x = trained(recipe)
    assert recipe.export(state).k == 4
    sae = recipe.export(state, form="threshold", meta=Meta(site="here"))
    assert (sae.form, sae.k, sae.meta.get("form"), sae.meta.site, sae.meta.recipe) == (
        "threshold",
        None,
        "threshold",
        "here",
        "topk",
    )
    assert 3.0 < float(sae.encode(x).l0().mean()) < 5.0


def test_forms_a_method_lacks_are_refused():
    recipe = recipes.relu_l1(D, S, l1_coefficient=1.0)
    state, _ = trained(recipe, 1)
    with pytest.raises(ConfigError, match="no 'rank' form for Relu; possible: threshold"):
        recipe.export(state, form="rank")


def test_the_exported_weights_are_the_running_mean_where_there_is_one():
    recipe = recipes.topk(D, S, k=4, lr=1e-2, average_decay=0.9)
    state, _ = trained(recipe)
    sae = recipe.export(state)
    assert not np.allclose(sae.W_dec, state.params["W_dec"])
    np.testing.assert_allclose(jnp.linalg.norm(sae.W_dec, axis=1), np.ones(S), rtol=1e-5)
