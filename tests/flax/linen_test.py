"""The linen bridge: equal to the SAE, trainable, shardable, freezable, and at a named site of a transformer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.flax import from_linen, splice_linen, to_linen
from jaxsae.parallel import make_mesh, sharding
from jaxsae.sae import RowNorm, make_sae

D, S, V, T = 16, 48, 30, 7


def a_sae(k=4, norm=RowNorm()):
    draw = np.random.default_rng(0).standard_normal
    params = {"W_enc": draw((D, S)), "b_enc": 0.1 * draw(S), "W_dec": 0.3 * draw((S, D)), "b_dec": 0.1 * draw(D)}
    if k is None:
        params["threshold"] = np.full(S, 0.5)
    return make_sae({n: jnp.asarray(a, jnp.float32) for n, a in params.items()}, norm=norm, k=k)


norm = partial(nn.RMSNorm, use_scale=False)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(D)(nn.relu(nn.Dense(2 * D)(x)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(3 * D)(x), 3, axis=-1)
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool))[None], q @ k.mT, -1e9)
        weights = nn.softmax(scores)
        return weights @ v, weights  # a tuple, as many models return


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + Attention(name="attention")(norm()(x))[0]
        return x + Mlp(name="mlp")(norm()(x))


class Transformer(nn.Module):
    block: type = Block

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(V, D)(tokens)
        for i in range(2):
            x = self.block(name=f"block_{i}")(x)
        return nn.Dense(V)(norm()(x))


TOKENS = jnp.arange(3 * T).reshape(3, T) % V


@pytest.fixture(scope="module")
def model():
    module, draw = Transformer(), np.random.default_rng(1).standard_normal
    shapes = jax.eval_shape(module.init, jax.random.key(1), TOKENS)
    return module, jax.tree.map(lambda a: jnp.asarray(0.3 * draw(a.shape), a.dtype), shapes)


def run(module, variables):
    return jax.jit(module.apply)(variables, TOKENS)


def loss(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean()


@pytest.mark.parametrize("k", [4, None])
def test_module_equals_sae_and_comes_back(k):
    sae, x = a_sae(k), jax.random.normal(jax.random.key(2), (5, 3, D))
    module, variables = to_linen(sae)
    assert set(variables["params"]) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert set(variables["constants"]) == {"k" if k else "threshold"}
    codes = module.apply(variables, x, method="encode")
    np.testing.assert_array_equal(codes.dense(), sae.encode(x).dense())
    np.testing.assert_array_equal(module.apply(variables, codes, x, method="decode"), sae(x))
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, x), jax.jit(lambda sae, x: sae(x))(sae, x))
    back = from_linen(module, variables)
    assert jax.tree.structure(back) == jax.tree.structure(sae)
    jax.tree.map(np.testing.assert_array_equal, back, sae)


def test_missing_or_misshapen_leaf_is_named():
    module, variables = to_linen(a_sae())
    broken = {**variables, "params": {**variables["params"], "W_dec": jnp.zeros((S, D + 1))}}
    with pytest.raises(ConfigError, match="'W_dec'"):
        module.apply(broken, jnp.zeros((2, D)))
    with pytest.raises(ConfigError, match="'W_enc' is missing"):
        from_linen(module, {"params": {}})


def test_init_draws_a_usable_dictionary():
    module, given = to_linen(a_sae())
    drawn = jax.jit(module.init)(jax.random.key(5), jnp.zeros((1, D)))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, given)
    assert int(drawn["constants"]["k"]) == 4
    assert float(jnp.std(drawn["params"]["W_dec"])) > 0
    frozen = to_linen(a_sae(), frozen=True)[0]
    assert set(jax.eval_shape(frozen.init, jax.random.key(5), jnp.zeros((1, D)))) == {"constants"}


def test_any_exported_recipe_can_be_wrapped():
    x = jax.random.normal(jax.random.key(2), (64, D))
    recipe = recipes.topk(D, S, k=4)
    sae = recipe.export(recipes.init(recipe, jax.random.key(0), {"x": x}))
    module, variables = to_linen(sae)
    np.testing.assert_array_equal(module.apply(variables, x), sae(x))


@pytest.mark.parametrize(("site", "at"), [("block_1/mlp", "output"), ("block_1", "input"), ("block_0.mlp", "instead")])
def test_splice_equals_the_same_surgery_by_hand(model, site, at):
    """Each block written out with its own submodules, the SAE put in by hand."""
    module, variables = model
    sae, p = a_sae(), variables["params"]

    def by_hand(tokens):
        x = nn.Embed(V, D).apply({"params": p["Embed_0"]}, tokens)
        for i in range(2):
            own = p[f"block_{i}"]
            if (i, at) == (1, "input"):
                x = sae(x)
            x = x + Attention().apply({"params": own["attention"]}, norm().apply({}, x))[0]
            h = norm().apply({}, x)
            if (i, at) == (0, "instead"):
                x = x + sae(h)
                continue
            y = Mlp().apply({"params": own["mlp"]}, h)
            x = x + (sae(y) if (i, at) == (1, "output") else y)
        return nn.Dense(V).apply({"params": p["Dense_0"]}, norm().apply({}, x))

    spliced, both = splice_linen(module, variables, site, sae, at=at)
    found = run(spliced, both)
    np.testing.assert_allclose(found, jax.jit(by_hand)(TOKENS), rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(found - run(module, variables)).max()) > 1e-2


def test_splice_leaves_the_original_alone(model):
    module, variables = model
    before, copy = run(module, variables), jax.tree.map(jnp.copy, variables)
    spliced, both = splice_linen(module, variables, "block_1/mlp", a_sae())
    run(spliced, both)
    np.testing.assert_array_equal(run(module, variables), before)
    jax.tree.map(np.testing.assert_array_equal, variables, copy)
    assert set(variables) == {"params"}


def test_splice_on_a_tuple_takes_its_first_entry(model):
    module, variables = model
    spliced, both = splice_linen(module, variables, "block_0/attention", a_sae())
    zeroed, _ = splice_linen(module, variables, "block_0/attention", a_sae(), through=lambda sae, x: jnp.zeros_like(x))
    assert float(jnp.abs(run(spliced, both) - run(zeroed, both)).max()) > 1e-2


def test_what_happens_at_the_site_is_a_function(model):
    """With the error added back the model is the one it was, whatever the SAE."""
    module, variables = model
    keep_error = lambda sae, x: sae(x) + (x - sae(x))  # noqa: E731
    spliced, both = splice_linen(module, variables, "block_1/mlp", a_sae(), through=keep_error)
    np.testing.assert_allclose(run(spliced, both), run(module, variables), atol=1e-4)


def test_gradient_reaches_both_and_training_lowers_the_loss(model):
    module, variables = model
    spliced, both = splice_linen(module, variables, "block_1/mlp", a_sae())
    params, constants = both["params"], {"constants": both["constants"]}
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, opt):
        value, g = jax.value_and_grad(lambda p: loss(spliced.apply({"params": p, **constants}, TOKENS)))(params)
        updates, opt = tx.update(g, opt)
        return optax.apply_updates(params, updates), opt, value, g

    opt = jax.jit(tx.init)(params)
    params, opt, first, grads = step(params, opt)
    for leaf in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert float(jnp.abs(grads["coder"][leaf]).max()) > 0, leaf
    assert float(jnp.abs(grads["model"]["block_0"]["mlp"]["Dense_0"]["kernel"]).max()) > 0
    for _ in range(30):
        params, opt, value, _ = step(params, opt)
    assert float(value) < 0.7 * float(first)
    trained = from_linen(spliced.coder, {"params": params["coder"], "constants": both["constants"]["coder"]})
    assert trained.k == 4
    assert float(jnp.abs(trained.W_dec - a_sae().W_dec).max()) > 0


def test_frozen_by_collection_and_by_stop_gradient(model):
    module, variables = model
    frozen, both = splice_linen(module, variables, "block_1/mlp", a_sae(), frozen=True)
    assert "coder" not in both["params"]
    rest = {"constants": both["constants"]}
    grads = jax.jit(jax.grad(lambda p: loss(frozen.apply({"params": p, **rest}, TOKENS))))(both["params"])
    assert float(jnp.abs(grads["model"]["block_0"]["mlp"]["Dense_0"]["kernel"]).max()) > 0  # through the SAE

    stop = lambda sae, x: jax.lax.stop_gradient(sae)(x)  # noqa: E731
    stopped, both = splice_linen(module, variables, "block_1/mlp", a_sae(), through=stop)
    rest = {"constants": both["constants"]}
    grads = jax.jit(jax.grad(lambda p: loss(stopped.apply({"params": p, **rest}, TOKENS))))(both["params"])
    assert all(float(jnp.abs(g).max()) == 0 for g in grads["coder"].values())
    assert float(jnp.abs(grads["model"]["block_0"]["mlp"]["Dense_0"]["kernel"]).max()) > 0


def test_sharded_inside_the_model_equals_unsharded(model):
    module, variables = model
    sae = a_sae()
    spliced, both = splice_linen(module, variables, "block_1/mlp", sae)
    mesh = make_mesh(data=2, latent=4)
    letters = {**sae.encoder.axes, **sae.dictionary.axes, **sae.readout.axes}
    own = {n: jax.device_put(a, sharding(mesh, letters[n])) for n, a in both["params"]["coder"].items()}
    assert own["W_dec"].sharding.shard_shape((S, D)) == (S // 4, D)
    spread = {**both, "params": {**both["params"], "coder": own}}
    tokens = jnp.concatenate([TOKENS, TOKENS[:1]])
    wanted = jax.jit(spliced.apply)(both, tokens)
    found = jax.jit(spliced.apply)(spread, jax.device_put(tokens, sharding(mesh, "B")))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_rematerialised_blocks_can_be_spliced_inside(model):
    module, variables = model
    lifted = Transformer(block=nn.remat(Block))
    spliced, both = splice_linen(module, variables, "block_1/mlp", a_sae())
    other, _ = splice_linen(lifted, variables, "block_1/mlp", a_sae())
    np.testing.assert_allclose(run(other, both), run(spliced, both), rtol=1e-5, atol=1e-5)


def test_unknown_sites_places_and_widths_are_refused(model):
    module, variables = model
    spliced, both = splice_linen(module, variables, "block_1/mpl", a_sae())
    with pytest.raises(ConfigError, match=r"no submodule 'block_1/mpl'; did you mean 'block_1/mlp'"):
        run(spliced, both)
    with pytest.raises(ConfigError, match="'output', 'input' or 'instead', found 'middle'"):
        splice_linen(module, variables, "block_1/mlp", a_sae(), at="middle")
    spliced, both = splice_linen(module, variables, "block_1/mlp/Dense_1", a_sae())
    with pytest.raises(ConfigError, match=f"width {D}"):
        run(spliced, both)


def test_init_of_the_spliced_model_draws_both(model):
    module, variables = model
    spliced, both = splice_linen(module, variables, "block_1/mlp", a_sae())
    drawn = jax.eval_shape(spliced.init, jax.random.key(3), TOKENS)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, both)
