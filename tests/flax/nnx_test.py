"""The NNX bridge: equal to the SAE, trainable, shardable, freezable, and at a named site of a transformer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsae.errors import ConfigError
from jaxsae.flax import Constant, from_nnx, splice_nnx, to_nnx
from jaxsae.parallel import make_mesh, sharding
from jaxsae.sae import RowNorm, make_sae

D, S, V, T = 16, 48, 30, 7
List = getattr(nnx, "List", list)  # flax before 0.12 holds submodules in plain lists
LEAVES = ("W_enc", "b_enc", "W_dec", "b_dec")


def a_sae(k=4, norm=RowNorm()):
    draw = np.random.default_rng(0).standard_normal
    params = {"W_enc": draw((D, S)), "b_enc": 0.1 * draw(S), "W_dec": 0.3 * draw((S, D)), "b_dec": 0.1 * draw(D)}
    if k is None:
        params["threshold"] = np.full(S, 0.5)
    return make_sae({n: jnp.asarray(a, jnp.float32) for n, a in params.items()}, norm=norm, k=k)


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(D, 2 * D, rngs=rngs), nnx.Linear(2 * D, D, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.qkv = nnx.Linear(D, 3 * D, rngs=rngs)

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool))[None], q @ k.mT, -1e9)
        return nnx.softmax(scores) @ v


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.RMSNorm(D, use_scale=False, rngs=rngs), nnx.RMSNorm(D, use_scale=False, rngs=rngs)
        self.attention, self.mlp = Attention(rngs), Mlp(rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.blocks = List([Block(rngs) for _ in range(2)])
        self.norm, self.head = nnx.RMSNorm(D, use_scale=False, rngs=rngs), nnx.Linear(D, V, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


TOKENS = jnp.arange(3 * T).reshape(3, T) % V


@pytest.fixture
def model():
    draw = np.random.default_rng(1).standard_normal
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Transformer(nnx.Rngs(1))))
    return nnx.merge(graph, jax.tree.map(lambda a: jnp.asarray(0.3 * draw(a.shape), a.dtype), shapes))


@nnx.jit
def run(model):
    return model(TOKENS)


def loss(model):
    logits = model(TOKENS)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean()


@pytest.mark.parametrize("k", [4, None])
def test_module_equals_sae_and_comes_back(k):
    sae, x = a_sae(k), jax.random.normal(jax.random.key(2), (5, 3, D))
    module = to_nnx(sae)
    assert {n for n, v in vars(module).items() if isinstance(v, nnx.Param)} == set(LEAVES)
    assert isinstance(getattr(module, "k" if k else "threshold"), Constant)
    codes = module.encode(x)
    np.testing.assert_array_equal(codes.dense(), sae.encode(x).dense())
    np.testing.assert_array_equal(module.decode(codes, like=x), sae(x))
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(module, x), jax.jit(lambda m, x: m(x))(sae, x))
    back = from_nnx(module)
    assert jax.tree.structure(back) == jax.tree.structure(sae)
    jax.tree.map(np.testing.assert_array_equal, back, sae)


def test_split_and_merge_keep_it():
    module, x = to_nnx(a_sae()), jnp.ones((2, D))
    graph, params, constants = nnx.split(module, nnx.Param, Constant)
    assert set(params) == set(LEAVES)
    np.testing.assert_array_equal(nnx.merge(graph, params, constants)(x), module(x))


def by_hand(model, sae, at):
    x = model.embed(TOKENS)
    for i, block in enumerate(model.blocks):
        if (i, at) == (1, "input"):
            x = sae(x)
        x = x + block.attention(block.norm1(x))
        if (i, at) == (0, "instead"):
            x = x + sae(block.norm2(x))
            continue
        y = block.mlp(block.norm2(x))
        x = x + (sae(y) if (i, at) == (1, "output") else y)
    return model.head(model.norm(x))


@pytest.mark.parametrize(
    ("site", "at"), [("blocks/1/mlp", "output"), ("blocks.1", "input"), ("blocks/0/mlp", "instead")]
)
def test_splice_equals_the_same_surgery_by_hand(model, site, at):
    sae = a_sae()
    spliced = splice_nnx(model, site, sae, at=at)
    np.testing.assert_allclose(run(spliced), jax.jit(partial(by_hand, model, sae, at))(), rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(run(spliced) - run(model)).max()) > 1e-2


def test_splice_leaves_the_original_alone(model):
    before = run(model)
    spliced = splice_nnx(model, "blocks/1/mlp", a_sae())
    spliced.head.kernel[...] = spliced.head.kernel[...] + 1.0
    spliced.blocks[1].mlp.inner.up.bias[...] = spliced.blocks[1].mlp.inner.up.bias[...] + 1.0
    assert float(jnp.abs(spliced.head.kernel[...] - model.head.kernel[...]).max()) > 0
    np.testing.assert_array_equal(run(model), before)
    assert isinstance(model.blocks[1].mlp, Mlp)


def test_what_happens_at_the_site_is_a_function(model):
    """With the error added back the model is the one it was, whatever the SAE."""
    spliced = splice_nnx(model, "blocks/1/mlp", a_sae(), through=lambda sae, x: sae(x) + (x - sae(x)))
    np.testing.assert_allclose(run(spliced), run(model), atol=1e-4)


def test_several_sites_by_splicing_again(model):
    sae = a_sae()
    twice = splice_nnx(splice_nnx(model, "blocks/0/mlp", sae), "blocks/1/mlp", sae)
    assert twice.blocks[0].mlp.coder is not twice.blocks[1].mlp.coder
    assert float(jnp.abs(run(twice) - run(splice_nnx(model, "blocks/1/mlp", sae))).max()) > 1e-2


def test_gradient_reaches_both_and_training_lowers_the_loss(model):
    spliced = splice_nnx(model, "blocks/1/mlp", a_sae())
    optimizer = nnx.Optimizer(spliced, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, g = nnx.value_and_grad(loss)(model)
        optimizer.update(model, g)
        return value, g

    first, grads = step(spliced, optimizer)
    grads = nnx.to_pure_dict(grads)
    for leaf in LEAVES:
        assert float(jnp.abs(grads["blocks"][1]["mlp"]["coder"][leaf]).max()) > 0, leaf
    assert float(jnp.abs(grads["blocks"][0]["mlp"]["up"]["kernel"]).max()) > 0
    for _ in range(30):
        value, _ = step(spliced, optimizer)
    assert float(value) < 0.7 * float(first)
    trained = from_nnx(spliced.blocks[1].mlp.coder)
    assert trained.k == 4
    assert float(jnp.abs(trained.W_dec - a_sae().W_dec).max()) > 0


def test_frozen_by_variable_type_and_by_stop_gradient(model):
    frozen = splice_nnx(model, "blocks/1/mlp", a_sae(), frozen=True)
    grads = nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(frozen))
    assert "coder" not in grads["blocks"][1]["mlp"]
    assert float(jnp.abs(grads["blocks"][0]["mlp"]["up"]["kernel"]).max()) > 0  # through the SAE

    stopped = splice_nnx(model, "blocks/1/mlp", a_sae(), through=lambda sae, x: jax.lax.stop_gradient(sae)(x))
    grads = nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(stopped))
    assert all(float(jnp.abs(grads["blocks"][1]["mlp"]["coder"][leaf]).max()) == 0 for leaf in LEAVES)
    assert float(jnp.abs(grads["blocks"][0]["mlp"]["up"]["kernel"]).max()) > 0


def test_only_the_dictionary_by_an_nnx_filter(model):
    """An ordinary NNX filter trains the SAE inside a frozen model."""
    spliced = splice_nnx(model, "blocks/1/mlp", a_sae())
    only = nnx.All(nnx.Param, nnx.PathContains("coder"))
    optimizer = nnx.Optimizer(spliced, optax.sgd(0.1), wrt=only)
    optimizer.update(spliced, nnx.jit(nnx.grad(loss, argnums=nnx.DiffState(0, only)))(spliced))
    assert float(jnp.abs(spliced.blocks[1].mlp.coder.W_dec[...] - a_sae().W_dec).max()) > 0
    np.testing.assert_array_equal(spliced.head.kernel[...], model.head.kernel[...])


def test_sharded_inside_the_model_equals_unsharded(model):
    sae = a_sae()
    spliced = splice_nnx(model, "blocks/1/mlp", sae)
    tokens = jnp.concatenate([TOKENS, TOKENS[:1]])
    wanted, mesh = nnx.jit(lambda m, t: m(t))(spliced, tokens), make_mesh(data=2, latent=4)
    graph, state = nnx.split(spliced)
    spliced = nnx.merge(graph, jax.device_put(state, sharding(mesh, "")))
    coder, letters = spliced.blocks[1].mlp.coder, {**sae.encoder.axes, **sae.dictionary.axes, **sae.readout.axes}
    for leaf in LEAVES:
        variable = getattr(coder, leaf)
        variable[...] = jax.device_put(variable[...], sharding(mesh, letters[leaf]))
    assert coder.W_dec[...].sharding.shard_shape((S, D)) == (S // 4, D)
    found = nnx.jit(lambda m, t: m(t))(spliced, jax.device_put(tokens, sharding(mesh, "B")))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_unknown_sites_places_and_widths_are_refused(model):
    with pytest.raises(ConfigError, match=r"no submodule 'blocks/1/mpl'; did you mean 'blocks/1/mlp'"):
        splice_nnx(model, "blocks/1/mpl", a_sae())
    for site in ("blocks/7/mlp", "nothing/at/all", "head/kernel", ""):
        with pytest.raises(ConfigError, match="no submodule"):
            splice_nnx(model, site, a_sae())
    with pytest.raises(ConfigError, match="'output', 'input' or 'instead', found 'middle'"):
        splice_nnx(model, "blocks/1/mlp", a_sae(), at="middle")
    with pytest.raises(ConfigError, match=f"width {D}"):
        splice_nnx(model, "blocks/1/mlp/up", a_sae())(TOKENS)
