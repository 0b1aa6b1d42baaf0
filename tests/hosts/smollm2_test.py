"""The real SmolLM2-135M: known numbers on a fixed text."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import hosts, packages

pytestmark = pytest.mark.real

TEXT = (pathlib.Path(__file__).parents[1] / "data" / "lighthouse.txt").read_text(encoding="utf-8").strip()
SITES = ("blocks.9.hook_resid_post", "blocks.14.hook_resid_post")


@pytest.fixture(scope="module")
def host():
    return hosts.load("smollm2-135m")


@pytest.fixture(scope="module")
def run(host):
    """Logits and two streams of the text."""
    tokens = jnp.asarray([host.tokenizer.encode(TEXT)])
    return jax.jit(lambda params, tokens: host.model.run(params, tokens, taps=SITES))(host.params, tokens)


def test_the_shape_is_the_published_one(host):
    model = host.model
    assert (model.n_layers, model.d_model, model.vocab_size) == (30, 576, 49152)
    assert model.n_params == 134_515_008
    assert host.digest == packages.SMOLLM2_135M.sha256


def test_the_cross_entropy_of_the_text_is_that_of_transformers(host, run):
    """3.08627 nats: measured once with transformers 5.23 reading the same file, on the same 215 tokens."""
    tokens = jnp.asarray([host.tokenizer.encode(TEXT)])
    assert tokens.shape == (1, 215)
    assert float(hosts.cross_entropy(run.logits, tokens).mean()) == pytest.approx(3.08627, abs=5e-4)


def test_it_knows_the_capital_of_france(host):
    tokens = jnp.asarray([host.tokenizer.encode("The capital of France is")])
    logits = jax.jit(lambda params: host.model.run(params, tokens).logits[0, -1])(host.params)
    assert host.tokenizer.token_strings([logits.argmax()]) == [" Paris"]


def test_the_first_position_is_an_attention_sink_in_layer_14_and_not_in_layer_9(run):
    """Norms of the stream at position 0 against the rest; 139 against 139, and 22,418 against 158, on other text."""
    norms = {site: np.linalg.norm(run.taps[site][0], axis=-1) for site in SITES}
    ratio = {site: norm[0] / np.median(norm[1:]) for site, norm in norms.items()}
    assert 0.5 < ratio[SITES[0]] < 2
    assert ratio[SITES[1]] > 50


def test_text_survives_the_tokenizer_and_special_tokens_are_apart(host):
    tokenizer = host.tokenizer
    ids = tokenizer.encode(TEXT + " café 東京 🙂 1822")
    assert tokenizer.decode(ids) == TEXT + " café 東京 🙂 1822"
    assert "".join(tokenizer.token_strings(tokenizer.encode(TEXT))) == TEXT
    assert tokenizer.token_strings(ids[-4:]) == ["1", "8", "2", "2"]  # digits stand alone
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.vocab_size) == (0, None, 49152)
    assert tokenizer.special_ids == frozenset(range(17))
    assert not tokenizer.special_ids & set(tokenizer.encode("<|im_start|>user<|im_end|>"))
    assert tokenizer.encode("<|im_start|>user<|im_end|>", special=True)[::2] == [1, 2]
