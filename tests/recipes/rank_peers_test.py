"""Losses and gradients of rank-family recipes equal those of installable libraries.  Needs them beside torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.objective import AuxK
from jaxsae.testing.conformance import batches

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

D, S, K = 12, 32, 4


def middle(recipe, half_dead=False):
    """A state with leaves off their start and, where wanted, every latent that this batch does not use dead."""
    batch, rng = batches(1, d=D)[0], np.random.default_rng(0)
    state = recipe.init(jax.random.key(0), batch)
    moved = {n: jnp.asarray(a + 0.3 * rng.standard_normal(a.shape), jnp.float32) for n, a in state.params.items()}
    state = state.replace(params=recipe.dictionary.project(moved))
    used = recipe.forward(state.params, batch, recipe.ctx(state)).sel.codes.tally(lambda v: v * 1.0) > 0
    since = jnp.where(used | (not half_dead), 0, 2**29).astype(jnp.int32)
    return state.replace(track={**state.track, "fired": {"since": since}}), batch, since


def put(parameter, array):
    parameter.data = torch.tensor(np.asarray(array)).contiguous()


def plain_encoder(x, weight, bias, k, activation):
    """The forward pass of sparsify's fused encoder, differentiated by torch itself.

    Its own backward pass drops the gradient of all pre-activations, so that neither its second selection nor its AuxK
    trains the encoder, and forgets the relu where fewer than k are positive.
    """
    from sparsify.fused_encoder import EncoderOutput

    pre = torch.relu(torch.nn.functional.linear(x, weight, bias))
    return EncoderOutput(*torch.topk(pre, k, dim=-1, sorted=False), pre)


def agree(recipe, state, batch, loss, theirs):
    (value, _), grads = jax.value_and_grad(recipe.loss, has_aux=True)(*recipe.split(state.params), state, batch)
    np.testing.assert_allclose(value, float(loss.detach()), rtol=1e-5)
    loss.backward()
    for name, (parameter, transposed) in theirs.items():
        expected = parameter.grad.numpy().T if transposed else parameter.grad.numpy()
        np.testing.assert_allclose(grads[name], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("dead", [False, True])
def test_batch_topk_is_that_of_dictionary_learning(dead):
    trainers = pytest.importorskip("dictionary_learning.trainers.batch_top_k")
    recipe = recipes.batch_topk(D, S, K, k_aux=D // 2, normalize_activations=False)
    recipe = recipe.replace_terms((recipe.terms[0], AuxK(D // 2)))  # there the term is normalised
    state, batch, since = middle(recipe, dead)
    peer = trainers.BatchTopKTrainer(10_000, D, S, K, 0, "", device="cpu")
    peer.num_tokens_since_fired = torch.tensor(np.asarray(since)).long()
    ae = peer.ae
    leaves = {
        "W_enc": (ae.encoder.weight, True),
        "b_enc": (ae.encoder.bias, False),
        "W_dec": (ae.decoder.weight, True),
        "b_dec": (ae.b_dec, False),
    }
    for name, (parameter, transposed) in leaves.items():
        put(parameter, state.params[name].T if transposed else state.params[name])
    agree(recipe, state, batch, peer.loss(torch.tensor(np.asarray(batch["x"])), step=0), leaves)


def test_matryoshka_is_that_of_dictionary_learning():
    """Its trainer multiplies levels by 1/M and then takes their mean: with weights 1 it is the loss of the paper."""
    trainers = pytest.importorskip("dictionary_learning.trainers.matryoshka_batch_top_k")
    fractions = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    recipe = recipes.matryoshka(D, S, K, tuple(fractions), bias_level=False, k_aux=D // 2)
    recipe = recipe.replace_terms((recipe.terms[0], AuxK(D // 2)))
    state, batch, since = middle(recipe, True)
    peer = trainers.MatryoshkaBatchTopKTrainer(10_000, D, S, K, 0, "", fractions, [1.0] * 5, device="cpu")
    peer.num_tokens_since_fired = torch.tensor(np.asarray(since)).long()
    leaves = {name: (getattr(peer.ae, name), False) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    for name, (parameter, _) in leaves.items():
        put(parameter, state.params[name])
    agree(recipe, state, batch, peer.loss(torch.tensor(np.asarray(batch["x"])), step=0), leaves)


def test_multi_topk_is_that_of_sparsify(monkeypatch):
    coder = pytest.importorskip("sparsify.sparse_coder")
    utils = pytest.importorskip("sparsify.utils")
    monkeypatch.setattr(coder, "decoder_impl", utils.eager_decode)  # the other one needs a GPU
    monkeypatch.setattr(coder, "fused_encoder", plain_encoder)
    recipe = recipes.multi_topk(D, S, K, aux_loss_coefficient=0.0, normalize_activations=False)
    state, batch, _ = middle(recipe)
    peer = coder.SparseCoder(D, coder.SparseCoderConfig(num_latents=S, k=K, multi_topk=True))
    leaves = {
        "W_enc": (peer.encoder.weight, True),
        "b_enc": (peer.encoder.bias, False),
        "W_dec": (peer.W_dec, False),
        "b_dec": (peer.b_dec, False),
    }
    for name, (parameter, transposed) in leaves.items():
        put(parameter, state.params[name].T if transposed else state.params[name])
    out = peer(torch.tensor(np.asarray(batch["x"])))
    agree(recipe, state, batch, out.fvu + out.multi_topk_fvu / 8, leaves)
