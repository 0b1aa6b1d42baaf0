"""The torch bridge: the module computes what the JAX object computes, trains, and comes back."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae.torch as bridge
from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import Meta, NoNorm, RowNorm, make_sae

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

D, S, E = 12, 40, 12
KINDS = {
    "relu": {},
    "threshold": {"threshold": True},
    "signed_threshold": {"threshold": True, "signed": True},
    "topk": {"k": 5},
    "abs_topk": {"k": 5, "signed": True},
    "topk_by_norm": {"k": 5, "by_norm": True},
}


def a_sae(kind="topk", norm=NoNorm(), subtract=True, d_out=E, dtype=jnp.float32, meta=Meta()):
    keys = jax.random.split(jax.random.key(7), 5)
    params = {
        "W_enc": jax.random.normal(keys[0], (D, S)),
        "b_enc": 0.3 * jax.random.normal(keys[1], (S,)),
        "W_dec": jax.random.normal(keys[2], (S, d_out)) * jnp.linspace(0.2, 2.0, S)[:, None],
        "b_dec": jax.random.normal(keys[3], (d_out,)),
    }
    how = dict(KINDS[kind])
    if how.pop("threshold", False):
        params["threshold"] = jax.random.uniform(keys[4], (S,), minval=0.2, maxval=1.5)
    params = {n: a.astype(dtype) for n, a in params.items()}
    return make_sae(params, norm=norm, subtract_b_dec=subtract and d_out == D, meta=meta, **how)


def rows(*lead, seed=3):
    return 2.0 + 3.0 * np.random.default_rng(seed).standard_normal((*lead, D)).astype(np.float32)


@pytest.mark.parametrize("norm", [NoNorm(), RowNorm(), RowNorm(ddof=0)], ids=["none", "row", "row0"])
@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_module_equals_sae(kind, norm, subtract):
    sae, x = a_sae(kind, norm, subtract), rows(4, 9)
    module = bridge.to_module(sae)
    codes = sae.encode(x)
    theirs = module.encode(torch.from_numpy(x))
    np.testing.assert_array_equal(theirs.detach().numpy() != 0, codes.dense() != 0)
    np.testing.assert_allclose(theirs.detach(), codes.dense(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), sae(x), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(module.decode(theirs).detach(), sae(x), rtol=1e-5, atol=1e-4)


def test_transcoder_widths():
    sae, x = a_sae("topk", d_out=7), rows(6)
    module = bridge.to_module(sae)
    assert (module.cfg.d_in, module.cfg.d_out) == (D, 7)
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), sae(x), rtol=1e-5, atol=1e-4)


def test_ties_go_to_the_lowest_index_as_in_jax():
    sae = make_sae(
        {"W_enc": jnp.ones((2, 6)), "b_enc": jnp.zeros(6), "W_dec": jnp.ones((6, 2)), "b_dec": jnp.zeros(2)}, k=2
    )
    codes = bridge.to_module(sae).encode(torch.ones(3, 2))
    assert (codes > 0).tolist() == [[True, True, False, False, False, False]] * 3


def test_exported_recipes_equal_their_module():
    x = jnp.asarray(rows(64))
    for recipe in (recipes.topk(D, S, k=4), recipes.relu_l1(D, S)):
        sae = recipe.export(recipes.init(recipe, jax.random.key(0), {"x": x}))
        y = bridge.to_module(sae)(torch.from_numpy(np.array(x)))
        np.testing.assert_allclose(y.detach(), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_jax(kind):
    sae, x = a_sae(kind, RowNorm()), rows(8)
    module = bridge.to_module(sae)
    ((module(torch.from_numpy(x)) - torch.from_numpy(x)) ** 2).mean().backward()
    trained = {n: sae.params[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    grads = jax.grad(lambda p: jnp.mean((sae.replace(params={**sae.params, **p})(x) - x) ** 2))(trained)
    assert {n for n, p in module.named_parameters()} == set(grads)
    for name, p in module.named_parameters():
        np.testing.assert_allclose(p.grad, grads[name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_module_trains():
    module, x = bridge.to_module(a_sae("topk", RowNorm())), torch.from_numpy(rows(256))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = ((module(x) - x) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind):
    sae, other = a_sae(kind, RowNorm()), a_sae(kind, RowNorm())
    module = bridge.to_module(sae)
    fresh = bridge.to_module(other.replace(params=jax.tree.map(jnp.zeros_like, other.params)))
    fresh.load_state_dict(module.state_dict())
    x = torch.from_numpy(rows(5))
    assert torch.equal(fresh(x), module(x))


@pytest.mark.parametrize("kind", KINDS)
def test_own_module_comes_back_exactly(kind):
    sae = a_sae(kind, RowNorm(), meta=Meta("topk", "gpt2", "blocks.3.hook_resid_pre", (("context_size", 128),)))
    back = bridge.from_module(bridge.to_module(sae))
    assert jax.tree.structure(back) == jax.tree.structure(sae)
    jax.tree.map(np.testing.assert_array_equal, back, sae)


def test_trained_module_comes_back_with_its_weights():
    module = bridge.to_module(a_sae())
    with torch.no_grad():
        module.W_dec += 1.0
    back = bridge.from_module(module)
    np.testing.assert_array_equal(back.W_dec, module.W_dec.detach())
    with torch.no_grad():
        module.W_dec.zero_()
    assert float(jnp.abs(back.W_dec).max()) > 0  # no shared memory


class Foreign(torch.nn.Module):
    """A module of somebody else, whose attributes do not say that b_dec is subtracted and rows are standardised."""

    def __init__(self, sae, norm, subtract, selection):
        super().__init__()
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            setattr(self, name, torch.nn.Parameter(torch.from_numpy(np.array(sae.params[name]))))
        self.norm, self.subtract, self.selection = norm, subtract, selection
        if selection == "topk":
            self.register_buffer("k", torch.tensor(5))
        if selection == "threshold":
            self.register_buffer("threshold", torch.tensor(0.7))

    def encode(self, x):
        if self.norm:
            self.mean, self.std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            x = (x - self.mean) / (self.std + 1e-5)
        pre = (x - self.b_dec * self.subtract) @ self.W_enc + self.b_enc
        if self.selection == "topk":
            best = pre.relu().topk(5, dim=-1)
            return torch.zeros_like(pre).scatter(-1, best.indices, best.values)
        return pre.relu() * (pre > 0.7) if self.selection == "threshold" else pre.relu()

    def decode(self, codes):
        y = codes @ self.W_dec + self.b_dec
        return y * self.std + self.mean if self.norm else y


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("selection", ["relu", "topk", "threshold"])
def test_foreign_module_is_understood_by_trying(norm, subtract, selection):
    module, x = Foreign(a_sae("relu"), norm, subtract, selection), rows(20, seed=11)
    sae = bridge.from_module(module)
    codes = module.encode(torch.from_numpy(x))
    np.testing.assert_allclose(sae.encode(x).dense(), codes.detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(x), module.decode(codes).detach(), rtol=1e-4, atol=1e-3)


def test_foreign_module_that_computes_something_else_is_refused():
    module = Foreign(a_sae("relu"), False, False, "relu")
    module.encode = lambda x: torch.sigmoid(x @ module.W_enc)
    with pytest.raises(ConfigError, match="are not an affine map"):
        bridge.from_module(module)
    with pytest.raises(ConfigError, match="no 'W_enc' on Linear"):
        bridge.from_module(torch.nn.Linear(2, 2))


def test_what_a_saebench_evaluation_reads():
    sae = a_sae("topk", meta=Meta("topk", "pythia-70m-deduped", "blocks.3.hook_resid_post", (("context_size", 128),)))
    module = bridge.to_module(sae)
    cfg = module.cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("pythia-70m-deduped", "blocks.3.hook_resid_post", 3)
    assert (cfg.d_in, cfg.d_sae, cfg.k, cfg.context_size, cfg.architecture) == (D, S, 5, 128, "topk")
    assert (module.W_enc.shape, module.W_dec.shape) == ((D, S), (S, E))
    assert (module.b_enc.shape, module.b_dec.shape) == ((S,), (E,))
    assert cfg.to_dict()["dtype"] == "float32"
    assert (module.dtype, module.device) == (torch.float32, torch.device("cpu"))
    module = module.to(device="cpu", dtype=torch.bfloat16)
    assert (module.dtype, cfg.dtype, module.k.dtype) == (torch.bfloat16, "bfloat16", torch.int32)
    assert module(torch.ones(2, 3, D)).dtype == torch.bfloat16


def test_bfloat16_module_is_near_the_bfloat16_sae():
    sae, x = a_sae("relu", dtype=jnp.bfloat16), rows(50)
    module = bridge.to_module(sae)
    assert module.dtype == torch.bfloat16
    wanted, y = np.array(sae(x)), module(torch.from_numpy(x)).float().detach().numpy()
    assert np.linalg.norm(y - wanted) < 2e-2 * np.linalg.norm(wanted)
    assert bridge.to_module(sae, dtype="float32").dtype == torch.float32
    with pytest.raises(ConfigError, match="found 'float7'"):
        bridge.to_module(sae, dtype="float7")


def test_decode_of_standardised_rows_needs_to_know_the_rows():
    module = bridge.to_module(a_sae("relu", RowNorm()))
    with pytest.raises(ConfigError, match="pass like=x"):
        module.decode(torch.zeros(3, S))
    x = torch.from_numpy(rows(3))
    codes = module.encode(x)
    with pytest.raises(ConfigError, match="pass like=x"):
        module.decode(codes[:2])
    assert torch.equal(module.decode(codes[:2], like=x[:2]), module(x)[:2])
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_wrong_width_and_unknown_slot_are_refused():
    sae = a_sae()
    with pytest.raises(ConfigError, match=f"width {D}"):
        bridge.to_module(sae).encode(torch.zeros(3, D + 1))

    @dataclasses.dataclass(frozen=True)
    class Odd:
        foldable, axes, fixed = False, {}, ()

    with pytest.raises(ConfigError, match="norm Odd has no torch form"):
        bridge.to_module(sae.replace(norm=Odd()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_activations_share_memory(dtype):
    x = jax.block_until_ready(jnp.arange(24).reshape(4, 6).astype(dtype))
    tensor = bridge.to_torch(x)
    assert tensor.data_ptr() == x.unsafe_buffer_pointer()
    np.testing.assert_array_equal(tensor.float().numpy(), np.asarray(x, np.float32))
    back = bridge.from_torch(tensor)
    assert back.unsafe_buffer_pointer() == tensor.data_ptr()
    assert back.dtype == dtype


def test_tensors_with_gradient_or_strides_are_taken_too():
    t = torch.arange(12.0).reshape(3, 4).requires_grad_()
    np.testing.assert_array_equal(bridge.from_torch(t.T), np.arange(12.0).reshape(3, 4).T)


def test_spread_arrays_are_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(jnp.zeros((8, 2)), jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    with pytest.raises(ConfigError, match="found one on 8"):
        bridge.to_torch(x)
    sae = a_sae()
    spread = sae.replace(params={**sae.params, "W_dec": jax.device_put(sae.W_dec, x.sharding)})
    np.testing.assert_array_equal(bridge.to_module(spread).W_dec.detach(), sae.W_dec)  # parameters are gathered
