"""Spliced cross-entropy against separate full runs of the host, written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import hosts, io
from jaxsae.errors import ConfigError, DataError
from jaxsae.evals.loss_recovered import Windows, entry, loss_recovered, windows
from jaxsae.hosts import cross_entropy
from jaxsae.sae import make_sae
from jaxsae.testing.meshes import device_mesh
from jaxsae.testing.tiny_host import tiny_host

T = 24
SITES = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def host():
    return tiny_host(n_layers=3, d_mlp=32)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return windows([(7, rng.integers(1, 257, 50)), (9, rng.integers(1, 257, T)), (3, rng.integers(1, 257, 30))], T, 500)


def random_sae(d, key, s=64):
    a, b = jax.random.split(key)
    W = jax.random.normal(a, (d, s)) / d
    return make_sae({"W_enc": W, "b_enc": jnp.zeros(s), "W_dec": W.T, "b_dec": 0.1 * jax.random.normal(b, (d,))}, k=8)


def identity_sae(d):
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)], axis=1)
    return make_sae({"W_enc": both, "b_enc": jnp.zeros(2 * d), "W_dec": both.T, "b_dec": jnp.zeros(d)})


def by_hand(host, site, data, replacements, first):
    """Per replacement, mean cross-entropy and mean KL to the clean run, from whole logits of whole runs."""

    @jax.jit
    def logits(params, tokens):
        later = (jnp.arange(T) >= first)[None, :, None]
        edits = [lambda a, f=f: jnp.where(later, f(a), a) for f in replacements.values()]
        return [host.model.run(params, tokens, edits={site: e}).logits for e in edits]

    runs, (clean, *_) = logits(host.params, data.tokens), logits(host.params, data.tokens)
    counted = np.arange(T - 1)[None] < data.length[:, None] - 1
    counted &= np.arange(T - 1)[None] >= first
    p = jax.nn.log_softmax(clean)
    for name, other in zip(replacements, runs, strict=True):
        divergence = (jnp.exp(p) * (p - jax.nn.log_softmax(other))).sum(-1)[:, :-1]
        loss = cross_entropy(other, jnp.asarray(data.tokens))
        yield name, np.asarray(loss)[counted].mean(), np.asarray(divergence)[counted].mean(), counted.sum()


@pytest.mark.parametrize("site", SITES)
def test_equals_four_full_runs(host, data, key, site):
    sae, mean = random_sae(32, key), np.linspace(-1, 1, 32).astype(np.float32)
    out = loss_recovered(sae, host, site, data, mean)
    replacements = {
        "clean": lambda a: a,
        "sae": sae,
        "mean": lambda a: jnp.broadcast_to(jnp.asarray(mean)[None, None], a.shape),
        "zero": jnp.zeros_like,
    }
    for name, loss, divergence, n in by_hand(host, site, data, replacements, 1):
        assert out[f"{name}_ce"] == pytest.approx(loss, rel=2e-5)
        assert out["ce_tokens"] == n
        if name != "clean":
            assert out["kl" if name == "sae" else f"kl_{name}"] == pytest.approx(divergence, rel=2e-4)
    for name in ("mean", "zero"):
        ablated = out[f"{name}_ce"]
        want = (ablated - out["sae_ce"]) / (ablated - out["clean_ce"])
        assert out[f"loss_recovered_{name}"] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("lies", ["host", "dictionary", "both"])
@pytest.mark.parametrize("shape", [(2, 4), (8, 1)])
def test_on_a_mesh_the_numbers_are_those_of_one_device(host, data, key, shape, lies):
    sae, mean, mesh = random_sae(32, key), np.linspace(-1, 1, 32).astype(np.float32), device_mesh(shape)
    alone = loss_recovered(sae, host, SITES[1], data, mean)
    host = host if lies == "dictionary" else hosts.place(host, mesh)
    sae = sae if lies == "host" else io.place(sae, mesh)
    spread = loss_recovered(sae, host, SITES[1], data, mean, batch_windows=3)  # 3 windows become 4, or 8
    assert spread.pop("standard_error") == pytest.approx(alone.pop("standard_error"), rel=1e-4)
    assert spread == pytest.approx(alone, rel=2e-5)


def test_a_perfect_dictionary_recovers_everything(host, data):
    out = loss_recovered(identity_sae(32), host, SITES[0], data, np.zeros(32, np.float32))
    assert out["sae_ce"] == pytest.approx(out["clean_ce"], rel=1e-6)
    assert out["loss_recovered_mean"] == pytest.approx(1.0, abs=1e-5)
    assert abs(out["kl"]) < 1e-5
    assert out["mean_ce"] == out["zero_ce"]  # the mean given is zero


def test_a_dictionary_that_predicts_the_mean_recovers_nothing(host, data):
    mean = jnp.linspace(-1, 1, 32)
    W = jnp.zeros((32, 16))
    sae = make_sae({"W_enc": W, "b_enc": jnp.zeros(16), "W_dec": W.T, "b_dec": mean})
    out = loss_recovered(sae, host, SITES[1], data, np.asarray(mean))
    assert out["loss_recovered_mean"] == pytest.approx(0.0, abs=1e-6)


def test_batching_and_padding_change_nothing(host, data, key):
    args = (random_sae(32, key), host, SITES[0], data, np.zeros(32, np.float32))
    one, three = (loss_recovered(*args, batch_windows=b) for b in (4, 3))
    longer = data._replace(tokens=np.pad(data.tokens, ((0, 0), (0, 5)), constant_values=200))
    wide = loss_recovered(*args[:3], longer, args[4], batch_windows=3)
    for name in ("clean_ce", "sae_ce", "mean_ce", "zero_ce", "kl", "ce_tokens"):
        assert one[name] == pytest.approx(three[name], rel=1e-5) == pytest.approx(wide[name], rel=1e-5)


def test_windows_count_predictions_from_replaced_positions():
    documents = [(0, np.arange(10)), (1, np.arange(25)), (2, np.arange(2)), (3, np.arange(100))]
    out = windows(documents, 10, 30)
    assert out.document.tolist() == [0, 1, 1, 1, 3]  # 8 + 8 + 8 + 3, one more window reaches 30
    assert out.length.tolist() == [10, 10, 10, 5, 10]
    assert (out.tokens[3] == [20, 21, 22, 23, 24, 0, 0, 0, 0, 0]).all()


def test_standard_error_shrinks_with_documents_and_needs_two(host, key):
    rng, sae = np.random.default_rng(0), random_sae(32, key)
    run = lambda n: loss_recovered(  # noqa: E731
        sae,
        host,
        SITES[0],
        windows([(i, rng.integers(1, 257, T)) for i in range(n)], T, 10**6),
        np.zeros(32, np.float32),
    )
    assert run(1)["standard_error"] is None
    few, many = run(4)["standard_error"], run(64)["standard_error"]
    assert 0 < many["sae_ce"] < few["sae_ce"]
    assert set(many) < set(run(4))


def test_everything_up_to_the_site_is_shared():
    assert entry("blocks.1.hook_mlp_out", 3) == "blocks.1.hook_resid_mid"
    assert entry("blocks.1.attn.hook_z", 3) == "blocks.1.hook_resid_pre"
    assert entry("blocks.1.hook_resid_post", 3) == "blocks.1.hook_resid_post"


def test_bad_input_is_named(host, data):
    with pytest.raises(ConfigError, match="reads 16 and writes 16"):
        loss_recovered(identity_sae(16), host, SITES[0], data, np.zeros(16, np.float32))
    with pytest.raises(ConfigError, match="mean"):
        loss_recovered(identity_sae(32), host, SITES[0], data, np.zeros(31, np.float32))
    with pytest.raises(DataError, match="more than 2 tokens"):
        windows([(0, np.arange(2))], T, 10)
    with pytest.raises(DataError, match="not finite"):
        loss_recovered(identity_sae(32), host, SITES[0], Windows(*data), np.full(32, np.nan, np.float32))
