"""Mistakes seen in other libraries, each a property that this one must have.

Here stand those that belong to no single member.  The others stand with theirs:
auxiliary loss without a gradient for the encoder, residual not detached, bias counted twice: objective/terms_test.py;
rectifier missing in a backward pass where a threshold is negative, a step applied to gated codes, thresholds in bf16,
thresholds forgotten when norms are folded: sae/jump_test.py; a running mean seeded from zero: sae/trackers_test.py;
a batch selection that depends on layout or devices: recipes/ranks_by_hand_test.py, recipes/mesh_test.py;
variance explained taken about zero: evals/metrics_test.py; stop gradients of the gate: recipes/training_golden_test.py.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.sae import NoNorm
from jaxsae.testing.conformance import batches, run

D, S, K = 12, 32, 4
PLAIN = {"normalize_activations": False}
RANKS = {
    "topk": lambda: recipes.topk(D, S, K, aux_loss_coefficient=0.0, **PLAIN),
    "batch_topk": lambda: recipes.batch_topk(D, S, K, aux_loss_coefficient=0.0, **PLAIN),
    "hierarchical_topk": lambda: recipes.hierarchical_topk(D, S, K, aux_loss_coefficient=0.0, **PLAIN),
}


@pytest.mark.parametrize(
    ("name", "fused"), [("topk", True), ("topk", False), ("batch_topk", True), ("hierarchical_topk", True)]
)
def test_a_selected_latent_that_the_rectifier_holds_at_zero_gets_no_gradient(name, fused):
    """Where fewer than k pre-activations are positive a list of k holds negative ones: worth 0, and flat there.

    A backward pass written for the list alone sends them the gradient of a positive code.
    """
    recipe, batch = RANKS[name](), batches(1, d=D)[0]
    shy = jnp.arange(S) % 8 > 0  # 4 latents of 32 may fire; the others are far below zero on every row
    make = np.random.default_rng(0).standard_normal
    p = {"W_enc": make((D, S)), "W_dec": make((S, D)), "b_dec": make(D)}
    p = {**{n: jnp.asarray(a, jnp.float32) for n, a in p.items()}, "b_enc": jnp.where(shy, -100.0, 0.1)}
    track = {t.name: t.init(S) for t in recipe.trackers}
    hyper = {n: jnp.asarray(v) for n, v in recipe.hyper}
    state = recipes.State(p, track, (), hyper, jax.random.key(0), jnp.int32(0), {})
    grads = jax.jit(lambda p: jax.grad(recipe.loss, has_aux=True)(p, {}, state, batch, (), fused)[0])(p)
    for leaf, axis in (("b_enc", 0), ("W_enc", 1), ("W_dec", 0)):
        g = np.asarray(grads[leaf])
        np.testing.assert_array_equal(np.compress(shy, g, axis), 0)
        assert np.abs(np.compress(~shy, g, axis)).max() > 0


def test_from_a_small_start_a_log_threshold_hardly_moves_and_a_plain_one_arrives():
    """Adam moves either leaf by about the rate: theta by the factor exp(lr), or by lr.  The docstring warns of it."""
    theta = {}
    for log in (True, False):
        recipe = recipes.jumprelu(
            D,
            S,
            0.3,
            bandwidth=0.1,
            start_threshold=0.001,
            log_threshold=log,
            lr=1e-3,
            lr_warm_up_steps=0,
            l0_warm_up_steps=0,
        )
        state, _ = run(replace(recipe, norm=NoNorm()), batches(40), jax.random.key(0))
        theta[log] = np.asarray(jnp.exp(state.params["log_threshold"]) if log else state.params["threshold"])
    assert np.all(np.abs(np.log(theta[True] / 0.001)) < 40 * 1e-3 * 1.05)
    assert np.median(np.abs(theta[False] - 0.001)) > 5 * np.median(np.abs(theta[True] - 0.001))
    assert "a threshold grows by a factor of at most exp(lr) a step" in " ".join(
        recipes.jumprelu.Config.__doc__.split()
    )
