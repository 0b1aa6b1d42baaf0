"""The decoder against a plain float64 calculation written down here, head by head and pair by pair."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import ConfigError, HostError
from jaxsae.hosts.llama import Llama
from jaxsae.testing.tiny_host import random_params, tiny_host

VARIANTS = {
    "half": {},
    "interleaved": {"rope_layout": "interleaved"},
    "untied": {"tied": False},
    "biases": {"attention_bias": "QKVO"},
    "scaled": {"rope_divisors": (1.0, 1.5, 2.0, 8.0), "rope_base": 500.0},
    "one head each": {"n_kv_heads": 4},
    "wide heads": {"d_head": 12},
}


QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnums=0, static_argnames="taps", compiler_options=QUICK)
def _run(model, params, tokens, taps=()):
    return model.run(params, tokens, taps=taps)


def run(host, tokens, **options):
    return _run(host.model, host.params, tokens, **options)


def by_hand(model, params, tokens):
    """Logits of one window, and the activations of every site, in float64 numpy with loops over positions and heads."""
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    half = model.d_head // 2
    divisors = model.rope_divisors or (1.0,) * half

    def rotate(vector, position):
        out = np.empty_like(vector)
        for i in range(half):
            first, second = (2 * i, 2 * i + 1) if model.rope_layout == "interleaved" else (i, i + half)
            turn = np.exp(1j * position * model.rope_base ** (-2 * i / model.d_head) / divisors[i])
            new = (vector[first] + 1j * vector[second]) * turn
            out[first], out[second] = new.real, new.imag
        return out

    def norm(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm_eps) * gain

    seen = {}
    x = p["embed"][tokens]
    for layer in range(model.n_layers):
        w = {name: value[layer] for name, value in p["blocks"].items()}
        bias = {c: w.get(f"b_{c}", 0.0) for c in "QKVO"}
        here = {"hook_resid_pre": x}
        h = norm(x, w["ln1"])
        z = np.zeros((len(tokens), model.n_heads * model.d_head))
        for head in range(model.n_heads):
            shared = head // (model.n_heads // model.n_kv_heads)
            mine, theirs = (slice(i * model.d_head, (i + 1) * model.d_head) for i in (head, shared))
            q, k, v = ((h @ w[f"W_{c}"] + bias[c])[:, s] for c, s in (("Q", mine), ("K", theirs), ("V", theirs)))
            q, k = (np.stack([rotate(row, t) for t, row in enumerate(m)]) for m in (q, k))
            for t in range(len(tokens)):
                scores = np.exp(k[: t + 1] @ q[t] / np.sqrt(model.d_head))
                z[t, mine] = scores / scores.sum() @ v[: t + 1]
        a = z @ w["W_O"] + bias["O"]
        x = x + a
        here |= {"attn.hook_z": z, "hook_attn_out": a, "hook_resid_mid": x}
        h = norm(x, w["ln2"])
        gate = h @ w["W_gate"]
        m = (gate / (1 + np.exp(-gate)) * (h @ w["W_in"])) @ w["W_out"]
        x = x + m
        here |= {"ln2.hook_normalized": h, "hook_mlp_out": m, "hook_resid_post": x}
        seen |= {f"blocks.{layer}.{name}": value for name, value in here.items()}
    return norm(x, p["ln_final"]) @ p["embed" if model.tied else "unembed"].T, seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_every_site_equal_the_calculation_by_hand(variant, key):
    host = tiny_host(key, n_layers=2, **VARIANTS[variant])
    tokens = jax.random.randint(key, (2, 7), 0, 257)
    got = run(host, tokens, taps=host.model.sites())
    for b in range(2):
        logits, seen = by_hand(host.model, host.params, np.asarray(tokens[b]))
        np.testing.assert_allclose(got.logits[b], logits, rtol=1e-4, atol=1e-4)
        assert set(got.taps) == set(seen)
        for site, value in seen.items():
            np.testing.assert_allclose(got.taps[site][b], value, rtol=1e-4, atol=2e-5, err_msg=site)
            assert got.taps[site].shape[-1] == host.model.width(site)


def test_a_position_sees_nothing_of_what_follows(key):
    host = tiny_host(key)
    tokens = jax.random.randint(key, (1, 9), 0, 257)
    logits = run(host, tokens).logits
    changed = run(host, tokens.at[0, 5:].set(7)).logits
    np.testing.assert_array_equal(logits[0, :5], changed[0, :5])
    assert not np.allclose(logits[0, 5:], changed[0, 5:])


def test_bfloat16_weights_give_bfloat16_activations_and_float32_logits_near_the_float32_ones(key):
    exact, rounded = tiny_host(key), tiny_host(key, dtype="bfloat16")
    tokens = jax.random.randint(key, (2, 16), 0, 257)
    site = "blocks.1.hook_mlp_out"
    a, b = (run(h, tokens, taps=(site,)) for h in (exact, rounded))
    assert (b.logits.dtype, b.taps[site].dtype) == (jnp.float32, jnp.bfloat16)
    assert float(jnp.linalg.norm(a.logits - b.logits) / jnp.linalg.norm(a.logits)) < 0.03
    assert exact.digest != rounded.digest


def test_the_logit_lens_of_a_direction_is_its_effect_on_the_logits_up_to_the_norms_division(key):
    host = tiny_host(key, tied=False)
    x, direction = jax.random.normal(key, (2, host.model.d_model))
    scale = jnp.sqrt(jnp.mean(x * x) + host.model.norm_eps)
    lens = host.model.unembed_direction(host.params, jnp.stack([direction, -2 * direction]))
    assert lens.shape == (2, 257)
    # Linear in the direction while the division is held fixed, so the lens of x itself is its logits times that.
    np.testing.assert_allclose(
        host.model.unembed_direction(host.params, x[None])[0] / scale,
        host.model.unembed(host.params, x),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(lens[1], -2 * lens[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_of_shapes_counts_every_parameter(variant, key):
    host = tiny_host(key, **VARIANTS[variant])
    assert host.model.n_params == sum(leaf.size for leaf in jax.tree.leaves(host.params))
    assert host.model.shapes() == jax.tree.map(jnp.shape, host.params)
    assert f"{host.model.n_layers} blocks" in host.model.describe()


def test_a_token_outside_the_vocabulary_gives_nan_and_not_another_token(key):
    host = tiny_host(key, n_layers=1)
    logits = run(host, jnp.array([[1, 2, 257], [1, 2, 256]])).logits
    assert bool(jnp.isnan(logits[0]).all())
    assert bool(jnp.isfinite(logits[1]).all())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((5,), np.int32), "shape \\[B, T\\]"),
        (np.zeros((1, 5), np.float32), "integers"),
        (None, "None"),
        (np.zeros((1, 600), np.int32), "600 tokens does not fit"),
        (np.zeros((1, 0), np.int32), "0 tokens"),
    ],
)
def test_tokens_of_a_wrong_kind_are_one_sentence(tokens, message, key):
    host = tiny_host(key, n_layers=1)
    with pytest.raises(HostError, match=message):
        host.model.run(host.params, tokens)


@pytest.mark.parametrize(
    "settings",
    [{"n_layers": 0}, {"n_kv_heads": 3}, {"d_head": 7}, {"rope_divisors": (1.0,)}, {"n_heads": "4"}],
)
def test_a_decoder_that_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError):
        dataclasses.replace(tiny_host(n_layers=1).model, **settings)


def test_the_model_is_a_static_argument(key):
    host = tiny_host(key, n_layers=1)
    traces = []

    def f(model, params, tokens):
        traces.append(model)
        return model.run(params, tokens).logits

    compiled = jax.jit(f, static_argnums=0)
    tokens = jnp.ones((1, 4), int)
    compiled(host.model, host.params, tokens)
    compiled(Llama(**dataclasses.asdict(host.model)), random_params(host.model, jax.random.key(5)), tokens)
    assert len(traces) == 1
