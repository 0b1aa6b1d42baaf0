"""The torch bridge: the module computes what the JAX object computes, trains, and comes back."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae.torch as bridge
from jaxsae import recipes
from jaxsae.errors import ConfigError
from jaxsae.sae import (
    SAE,
    Affine,
    BatchRule,
    Bias,
    Free,
    Gated,
    Linear,
    LinearSkip,
    Meta,
    NoNorm,
    PreSelect,
    Pursuit,
    Rank,
    Relu,
    RowLength,
    RowNorm,
    RowShape,
    TanhRelu,
    Threshold,
    Whiten,
    check_shapes,
    make_sae,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

D, S, E = 12, 40, 12
SELECTORS = {
    "relu": Relu(),
    "linear": Linear(),
    "tanh": TanhRelu(),
    "threshold": Threshold(),
    "signed_threshold": Threshold(signed=True),
    "unrectified_threshold": Threshold(rectify=False),
    "topk": Rank(5),
    "abs_topk": Rank(5, signed=True),
    "topk_by_norm": Rank(5, by_norm=True),
    "unrectified_topk": Rank(36, rectify=False),
    "gated": Relu(),
}
NORMS = [NoNorm(), RowNorm(), RowNorm(ddof=0, restore=False), RowLength(), RowLength(restore=False)]


def a_sae(kind="topk", norm=NoNorm(), subtract=True, d_out=E, dtype=jnp.float32, meta=Meta(), skip=None):
    draw = np.random.default_rng(7).standard_normal
    b_pre = "b_dec" if subtract and d_out == D else "none"
    params = {"W_enc": draw((D, S)), "W_dec": draw((S, d_out)) * np.linspace(0.2, 2, S)[:, None], "b_dec": draw(d_out)}
    for name in ("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",):
        params[name] = 0.3 * draw(S)
    if "threshold" in kind:
        params["threshold"] = draw(S)  # some below zero
    if skip is not None:
        params["W_skip"] = draw((D, d_out))
    params = {n: jnp.asarray(a, dtype) for n, a in params.items()}
    if "topk" in kind:
        params["k"] = jnp.int32(SELECTORS[kind].cap)
    encoder = (Gated if kind == "gated" else Affine)(D, S, b_pre)
    readout = Bias(d_out) if skip is None else LinearSkip(D, d_out, raw=skip == "raw")
    sae = SAE(params, norm, PreSelect(encoder, SELECTORS[kind]), Free(S, d_out), readout, meta)
    check_shapes(sae)
    return sae


def rows(*lead, seed=3):
    return 2.0 + 3.0 * np.random.default_rng(seed).standard_normal((*lead, D)).astype(np.float32)


@pytest.mark.parametrize("kind", SELECTORS)
def test_module_equals_sae_whatever_the_selection(kind):
    equal(a_sae(kind, RowNorm()))
    equal(a_sae(kind, subtract=False))


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("skip", [None, "raw", "scaled"])
def test_module_equals_sae_whatever_the_scaling_and_the_skip(norm, skip):
    equal(a_sae("topk", norm, skip=skip))


def equal(sae):
    x = rows(4, 9)
    x[0, 0] = 0.0 if isinstance(sae.norm, RowLength) else x[0, 0]  # a row without length stays as it is
    module = bridge.to_module(sae)
    codes = sae.encode(x)
    theirs = module.encode(torch.from_numpy(x))
    np.testing.assert_array_equal(theirs.detach().numpy() != 0, codes.dense() != 0)
    np.testing.assert_allclose(theirs.detach(), codes.dense(), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), sae(x), rtol=1e-5, atol=2e-4)
    if isinstance(sae.readout, Bias):  # a skip needs the rows
        np.testing.assert_allclose(module.decode(theirs).detach(), sae(x), rtol=1e-5, atol=2e-4)


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


@pytest.mark.parametrize("kind", SELECTORS)
def test_gradients_equal_those_of_jax(kind):
    sae, x = a_sae(kind, RowNorm()), rows(8)
    module = bridge.to_module(sae)
    ((module(torch.from_numpy(x)) - torch.from_numpy(x)) ** 2).mean().backward()
    trained = {n: a for n, a in sae.params.items() if n not in ("threshold", "k")}
    grads = jax.grad(lambda p: jnp.mean((sae.replace(params={**sae.params, **p})(x) - x) ** 2))(trained)
    assert {n for n, p in module.named_parameters()} == set(grads)
    for name, p in module.named_parameters():
        np.testing.assert_allclose(0.0 if p.grad is None else p.grad, grads[name], rtol=1e-3, atol=1e-5, err_msg=name)


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


@pytest.mark.parametrize("kind", SELECTORS)
def test_state_dict_round_trip(kind):
    sae, other = a_sae(kind, RowNorm()), a_sae(kind, RowNorm())
    module = bridge.to_module(sae)
    fresh = bridge.to_module(other.replace(params=jax.tree.map(jnp.zeros_like, other.params)))
    fresh.load_state_dict(module.state_dict())
    x = torch.from_numpy(rows(5))
    assert torch.equal(fresh(x), module(x))


@pytest.mark.parametrize("kind", SELECTORS)
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

    with pytest.raises(ConfigError, match="norm Whiten has no torch form; those that have: NoNorm, RowNorm"):
        bridge.to_module(sae.replace(norm=Whiten()))
    with pytest.raises(ConfigError, match="encoder Pursuit has no torch form"):
        bridge.to_module(sae.replace(encoder=Pursuit(D, S, 3)))
    with pytest.raises(ConfigError, match="rule BatchRule has no torch form"):
        bridge.to_module(sae.replace(encoder=PreSelect(Affine(D, S), Rank(4, BatchRule()))))
    with pytest.raises(ConfigError, match="rows of shape"):
        bridge.to_module(sae.replace(rows=RowShape((2, D // 2), (2, D // 2))))


def test_an_option_the_torch_form_does_not_read_is_refused(monkeypatch):
    from jaxsae.torch import members

    monkeypatch.setitem(members.OPTIONS["selector"], Rank, {"cap", "rule", "signed", "rectify"})
    with pytest.raises(ConfigError, match="option 'by_norm' of the selector Rank has no torch form"):
        bridge.to_module(a_sae())


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
