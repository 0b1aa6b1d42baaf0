"""Losses, gradients and codes of recipes equal those of other libraries' trainers, by numbers they left behind.

`tests/golden/training/make.py` ran dictionary_learning, SAELens and sparsify once, each on one batch in the middle of a
run, and torch's gradients were kept; for MSAE, AdaptiveK and OrtSAE it ran their equations in float64.  No torch is
needed here.  Where a trainer departs from its paper, a member made here departs in the same way and must agree, and the
recipe's own must not: so the difference is known and is the only one.
"""

import json
import pathlib
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import recipes
from jaxsae.objective import AuxK, GateAux, Mse, NormalisedMse, Orthogonality, TargetL0
from jaxsae.objective.terms import batch_variance
from jaxsae.recipes import State
from jaxsae.sae import NoNorm, PreSelect
from jaxsae.sae.jump import step
from jaxsae.testing.conformance import assert_close

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "training"
D, S, K, ROWS = 6, 16, 3, 12
FRACTIONS = (1 / 8, 1 / 8, 1 / 4, 1 / 2)
#: Rounding in f32, relative to the largest entry of each array.
ROUNDING = 1e-5
#: The pools of dead latents are larger than this, so that every trainer takes as many as it asks for.
K_AUX = D // 2


def golden(name):
    """(rows, parameters, dead, answers, gradients)."""
    with np.load(GOLDEN / f"{name}.npz") as f:
        a = {n: jnp.asarray(f[n]) for n in f.files}
    answers = {n: a[n] for n in ("codes", "recon", "loss")}
    by_name = lambda letter: {n[2:]: v for n, v in a.items() if n.startswith(letter + ".")}  # noqa: E731
    return {"x": a["x"]}, by_name("p"), a["dead"], answers, by_name("g")


def answered(recipe, name, track=None):
    """What the recipe makes of the case: ({loss, codes, recon}, gradients)."""
    batch, p, dead, _, _ = golden(name)
    recipe = replace(recipe, norm=NoNorm())
    p = {**p, **{n + "_start": p[n] for n in ("probe_w", "probe_b") if n in p}}
    if "log_threshold" in recipe.axes:
        p["log_threshold"] = jnp.log(p.pop("threshold"))
    assert set(p) == set(recipe.axes)
    own = {t.name: t.init(S) for t in recipe.trackers}
    own |= {"fired": {"since": dead.astype(jnp.int32) * 2**29}, **(track or {})}
    hyper = {n: jnp.asarray(v) for n, v in recipe.hyper}
    state = State(p, own, (), hyper, jax.random.key(0), jnp.int32(0), {})

    @jax.jit
    def run(state, batch):
        (loss, _), grads = jax.value_and_grad(recipe.loss, has_aux=True)(*recipe.split(p), state, batch)
        out = recipe.forward(p, batch, recipe.ctx(state))
        return {"codes": out.sel.codes.dense(), "loss": loss, "recon": out.yhat}, grads

    return run(state, batch)


def agrees(recipe, name, but=(), track=None):
    """Loss, codes, reconstruction and all gradients but those named agree to f32 rounding; returns both gradients."""
    ours, grads = answered(recipe, name, track)
    _, _, _, theirs, expected = golden(name)
    assert_close(ours, theirs, ROUNDING)
    compared = {n: grads[n] for n in grads if n not in but}
    assert compared
    assert_close(compared, {n: expected[n] for n in compared}, ROUNDING)
    return grads, expected


def differ(a, b):
    """By far more than rounding."""
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) > 1e-2


def with_terms(recipe, *terms, **hyper):
    """The recipe with other terms, and the scalars that they read."""
    return replace(recipe, terms=terms, hyper=(*(h for h in recipe.hyper if h[0] not in hyper), *hyper.items()))


AUX = AuxK(K_AUX, normalised=False)


# ------------------------------------------------------------------------------------------ gated
def test_gated_is_that_of_dictionary_learning():
    agrees(recipes.gated(D, S, l1_coefficient=0.3, l1_warm_up_steps=0), "dl_gated")


@dataclass(frozen=True)
class AttachedGateAux(GateAux):
    """The gate's reconstruction with atoms and bias that it trains too."""

    def __call__(self, out, ctx):
        through = jax.nn.relu(out.sel.pre.score) @ out.p["W_dec"] + out.p["b_dec"][None]
        return jnp.sum((out.rows.y - through) ** 2, axis=1)


def test_gated_is_that_of_sae_lens_but_for_its_missing_stop_gradients():
    """SAELens trains atoms and decoder bias through the gate's reconstruction; the paper stops these gradients.

    It also weighs the penalty by the norms of the atoms: no difference in value at norm 1, another one in the gradient.
    """
    recipe = recipes.gated(D, S, l1_coefficient=0.3, l1_warm_up_steps=0)
    theirs = with_terms(recipe, Mse(), replace(recipe.terms[1], by_norm=True), AttachedGateAux())
    agrees(theirs, "sl_gated")
    grads, expected = agrees(recipe, "sl_gated", but=("W_dec", "b_dec"))
    assert differ(grads["W_dec"], expected["W_dec"])
    assert differ(grads["b_dec"], expected["b_dec"])


def annealed(p=0.6, factor=1.7):
    """The tracker of p-annealing in the middle of a run."""
    own = {"p": jnp.float32(p), "next": jnp.float32(p), "factor": jnp.float32(factor), "seen": jnp.zeros((1, 2))}
    return {"p_anneal": own}


@pytest.mark.parametrize("name", ["p_anneal", "gated_p_anneal"])
def test_p_annealing_is_that_of_dictionary_learning(name):
    recipe = getattr(recipes, name)(D, S, sparsity_coefficient=0.3, sparsity_warm_up_steps=0)
    agrees(recipe, f"dl_{name}", track=annealed())


def test_the_root_of_the_sum_is_that_of_dictionary_learning():
    recipe = recipes.p_anneal(D, S, sparsity_coefficient=0.3, sparsity_warm_up_steps=0, root=True)
    agrees(recipe, "dl_p_anneal_root", track=annealed())


@pytest.mark.parametrize("name", ["dl_relu_l1", "sl_relu_l1"])
def test_relu_l1_is_that_of_two_libraries(name):
    """In dictionary_learning the trainer of Anthropic's April 2024 update, in SAELens `standard`.

    The former subtracts the decoder bias from its input, which the update does not.
    """
    recipe = recipes.relu_l1(D, S, l1_coefficient=0.3)
    centred = replace(recipe, encoder=replace(recipe.encoder, encoder=replace(recipe.encoder.encoder, b_pre="b_dec")))
    agrees(centred if name == "dl_relu_l1" else recipe, name)


# ------------------------------------------------------------------------------------------ jumprelu
JUMP = {"start_threshold": 0.3, "bandwidth": 0.4, "l0_coefficient": 0.3, "l0_warm_up_steps": 0}


def test_jumprelu_is_that_of_sae_lens():
    """Its `step` loss: the thresholds as they are, not their logarithms (there too because logarithms hardly move)."""
    agrees(recipes.jumprelu(D, S, log_threshold=False, **JUMP), "sl_jumprelu_step")


def test_a_log_threshold_gets_theta_times_the_gradient_of_the_threshold():
    _, p, _, _, expected = golden("sl_jumprelu_step")
    _, grads = answered(recipes.jumprelu(D, S, **JUMP), "sl_jumprelu_step")
    assert_close(grads["log_threshold"], p["threshold"] * expected["threshold"], ROUNDING)


def test_anthropics_jumprelu_is_that_of_sae_lens():
    """Its `tanh` loss with the gradient to the input, the window of Anthropic's update, and no pre-activation loss."""
    recipe = recipes.jumprelu_anthropic(D, S, sparsity_coefficient=0.3, bandwidth=2.0)
    encode = recipe.encoder
    plain = replace(recipe, encoder=PreSelect(encode.encoder, replace(encode.selector, log=False)))
    agrees(with_terms(plain, *recipe.terms[:2]), "sl_jumprelu_tanh")


@dataclass(frozen=True)
class CountsGatedCodes(TargetL0):
    """The L0 of codes that have been through the jump: none is just below its threshold."""

    def __call__(self, out, ctx):
        on = step(out.sel.codes.values, out.sel.theta[None], ctx.hyper["bandwidth"])
        return (jnp.mean(jnp.sum(on, axis=1)) / ctx.hyper["target_l0"] - 1.0) ** 2


def test_target_l0_is_that_of_dictionary_learning_but_for_its_half_window():
    """Its trainer applies the step to gated codes, so only pre-activations above their threshold pull on it.

    The loss is the same; the gradient that the L0 term sends to the thresholds lacks the lower half of the window.
    """
    recipe = recipes.jumprelu_target_l0(D, S, target_l0=5.0, **{**JUMP, "l0_coefficient": 3.0})
    theirs = with_terms(recipe, Mse(), replace(CountsGatedCodes(), schedule=recipe.terms[1].schedule))
    agrees(theirs, "dl_jumprelu")
    grads, expected = agrees(recipe, "dl_jumprelu", but=("threshold",))
    assert differ(grads["threshold"], expected["threshold"])


# ------------------------------------------------------------------------------------------ ranks
@pytest.mark.parametrize("name", ["dl_topk", "dl_topk_dead"])
def test_topk_is_that_of_dictionary_learning(name):
    """There the error is not divided by the variance of the rows (Gao et al. do); AuxK is, by that of the residual."""
    recipe = recipes.topk(D, S, K, k_aux=K_AUX, normalize_activations=False)
    agrees(with_terms(recipe, Mse(), AuxK(K_AUX)), name)


def test_topk_is_that_of_sae_lens():
    """There neither the error nor AuxK is normalised, and auxiliary codes are not rectified (all are positive here)."""
    recipe = recipes.topk(D, S, K, k_aux=K_AUX, normalize_activations=False)
    agrees(with_terms(recipe, Mse(), AUX), "sl_topk_dead")


@dataclass(frozen=True)
class AuxKOverVariance(AuxK):
    """AuxK divided by the variance of the rows instead of that of the residual."""

    def __call__(self, out, ctx):
        e_hat = out.sel.aux.decode(out.p["W_dec"])
        return jnp.sum((jax.lax.stop_gradient(out.err) - e_hat) ** 2) / batch_variance(out.rows.y, out.rows.mask)


def test_topk_is_that_of_sparsify():
    """With torch's own backward pass.  There AuxK is divided by the variance of the rows, not of the residual."""
    recipe = recipes.topk(D, S, K, k_aux=K_AUX, normalize_activations=False)
    agrees(with_terms(recipe, NormalisedMse(), AuxKOverVariance(K_AUX)), "sp_topk_dead")


def test_the_auxiliary_loss_trains_encoders_of_dead_latents_which_sparsifys_own_backward_forgets():
    """Its fused encoder drops the gradient of the pre-activations that AuxK reads: dead encoder columns get none."""
    recipe = recipes.topk(D, S, K, k_aux=K_AUX, normalize_activations=False)
    recipe = with_terms(recipe, NormalisedMse(), AuxKOverVariance(K_AUX))
    _, _, dead, answers, theirs = golden("sp_topk_dead_own_backward")
    ours, grads = answered(recipe, "sp_topk_dead_own_backward")
    assert_close(ours, answers, ROUNDING)
    idle = dead & ~jnp.any(answers["codes"] != 0, axis=0)
    assert int(jnp.sum(idle)) >= 4
    np.testing.assert_array_equal(theirs["W_enc"][:, idle], 0)
    assert np.any(np.asarray(grads["W_enc"])[:, idle] != 0, axis=0).sum() >= 4  # one is never among the best K_AUX


def test_multi_topk_is_that_of_sparsify():
    recipe = recipes.multi_topk(D, S, K, k_aux=K_AUX, normalize_activations=False)
    agrees(with_terms(recipe, recipe.terms[0], AuxKOverVariance(K_AUX)), "sp_multi_topk_dead")


def test_batch_topk_is_that_of_two_libraries():
    """dictionary_learning normalises AuxK by the variance of the residual, SAELens and the authors do not."""
    recipe = recipes.batch_topk(D, S, K, k_aux=K_AUX, normalize_activations=False)
    agrees(with_terms(recipe, Mse(), AuxK(K_AUX)), "dl_batch_topk_dead")
    agrees(recipe, "sl_batch_topk_dead")


def nested(**options):
    recipe = recipes.matryoshka(D, S, K, FRACTIONS, bias_level=False, k_aux=K_AUX, **options)
    return with_terms(recipe, Mse(), AuxK(K_AUX))


def test_matryoshka_is_that_of_dictionary_learning():
    """With level weights of 1.  Its default of 1/M per level, on top of a mean over levels, divides twice by M."""
    agrees(nested(), "dl_matryoshka_dead")
    divided = replace(nested(), levels=replace(nested().levels, weights=(1 / 16,) * 4))
    ours, _ = answered(divided, "dl_matryoshka_default_weights")
    theirs = golden("dl_matryoshka_default_weights")[3]
    assert_close(ours["codes"], theirs["codes"], ROUNDING)
    assert differ(ours["loss"], theirs["loss"])  # weights of the levels are divided by their sum here
    quarter = with_terms(nested(), Mse("level_coefficient"), AuxK(K_AUX), level_coefficient=0.25)
    agrees(quarter, "dl_matryoshka_default_weights")


def test_matryoshka_is_that_of_sae_lens():
    """There levels are summed, not averaged: with 4 levels the error weighs 4 times as much beside AuxK."""
    summed = with_terms(nested(), Mse("level_coefficient"), AUX, level_coefficient=4.0)
    agrees(summed, "sl_matryoshka_dead")


# ------------------------------------------------------------------------------------------ equations of papers
@pytest.mark.parametrize(
    ("name", "weighting", "cap"), [("eq_msae", "uniform", None), ("eq_msae_reversed_capped", "reversed", 0.7)]
)
def test_msae_is_that_of_the_paper(name, weighting, cap):
    agrees(recipes.msae(D, S, 2, weighting, cap), name)


def test_adaptive_k_is_that_of_the_paper():
    """Joint or not, the selection gives the probe no gradient."""
    options = {"low": 0.5, "high": 4.0, "l1_coefficient": 0.2, "k_aux": K_AUX}
    recipe = recipes.adaptive_k(D, S, 2, **options)
    ours, _ = answered(recipe, "eq_adaptive_k")
    assert len(set(np.count_nonzero(ours["codes"], axis=1).tolist())) > 2
    agrees(recipe, "eq_adaptive_k")


def test_ortsae_is_that_of_the_paper():
    """With its random chunks replaced by those of the golden numbers."""
    order = json.loads((GOLDEN / "about.json").read_text())["eq_ortsae"]["options"]["order"]

    @dataclass(frozen=True)
    class Chunked(Orthogonality):
        def _value(self, atoms, ctx):
            parts = [Orthogonality._value(self, atoms[jnp.asarray(c)], ctx) for c in (order[:8], order[8:])]
            return (parts[0] + parts[1]) / 2

    recipe = recipes.ortsae(D, S, K, k_aux=K_AUX, normalize_activations=False)
    agrees(replace(recipe, terms=(*recipe.terms[:2], Chunked(chunk=8))), "eq_ortsae")
