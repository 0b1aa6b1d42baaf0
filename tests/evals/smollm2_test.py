"""The cross-entropies of the real SmolLM2-135M keep their order."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import hosts
from jaxsae.evals.loss_recovered import loss_recovered, windows
from jaxsae.sae import make_sae

pytestmark = pytest.mark.real

TEXT = (pathlib.Path(__file__).parents[1] / "data" / "lighthouse.txt").read_text(encoding="utf-8").strip()
SITE = "blocks.9.hook_resid_post"


def principal_components(rows, n):
    """A coder of n directions and their opposites: the best linear reconstruction of these rows of rank n."""
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:n]
    both = jnp.asarray(np.concatenate([axes, -axes]))
    params = {"W_enc": both.T, "b_enc": -both @ mean, "W_dec": both, "b_dec": jnp.asarray(mean)}
    return make_sae(params), mean


def test_clean_below_dictionary_below_mean_below_zero():
    host = hosts.load("smollm2-135m")
    data = windows([(0, np.asarray(host.tokenizer.encode(TEXT)))], 72, 10**6)
    run = jax.jit(lambda params, tokens: host.model.run(params, tokens, taps=[SITE], logits=False).taps[SITE])
    rows = np.asarray(run(host.params, data.tokens))[:, 1:].reshape(-1, 576)
    few, many = (loss_recovered(*_case(host, rows, n, data), batch_windows=3) for n in (8, 48))
    for out in (few, many):
        assert 2.0 < out["clean_ce"] < 3.5
        assert out["clean_ce"] < out["sae_ce"] < out["mean_ce"] < out["zero_ce"]
        assert 0 < out["kl"] < out["kl_mean"]
        assert 0 < out["loss_recovered_mean"] < out["loss_recovered_zero"] < 1
    assert few["loss_recovered_mean"] < many["loss_recovered_mean"]
    assert few["clean_ce"] == pytest.approx(many["clean_ce"], rel=1e-6)


def _case(host, rows, n, data):
    sae, mean = principal_components(rows, n)
    return sae, host, SITE, data, mean
