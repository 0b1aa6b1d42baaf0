"""AdaptiveK: Yao & Du 2025, "AdaptiveK Sparse Autoencoders", 2508.17320."""

import math
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from jaxsae.errors import ConfigError
from jaxsae.objective import AuxK, Linear, Mse, ProbeDrift, ProbeError, RelativeL1
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.defaults import aux_latents
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.recipes.state import State
from jaxsae.sae import (
    Affine,
    Bias,
    EmaThreshold,
    Fired,
    Identity,
    NoNorm,
    PreSelect,
    ProbeRule,
    Rank,
    RowNorm,
    Scored,
    Unit,
)


@published
def adaptive_k(
    d_in: int,
    d_sae: int,
    k: int = 80,
    low: float = 0.25,
    high: float = 4.0,
    phase: Literal["frozen", "joint"] = "frozen",
    l1_coefficient: float = 0.0,
    probe_coefficient: float = 0.1,
    lr: float = 3e-4,
    lr_warm_up_steps: int = 1000,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int | None = None,
    dead_after_tokens: int = 10_000_000,
    normalize_activations: bool = False,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """AdaptiveK (Yao & Du 2025, 2508.17320): each row keeps k(x) latents, k(x) from a linear probe of its complexity.

        c(x) = clamp(x . w + b, 0, 10)      k(x) = round(k_min + sigmoid(6 (c(x)/10 - 1/2)) (k_max - k_min))
        pre = (x - b_dec) W_enc + b_enc     z = relu(TopK_k(x)(pre))      xhat = z W_dec + b_dec
        L = mean ||x - xhat||^2 + l1 mean||z||_1 / mean||x|| + (1/32) L_aux
            joint phase:  + p (mean (c(x) - score)^2 + ||w - w_0|| + |b - b_0|)

    k_min = low k and k_max = high k (20 and 320 for the paper's base 80).  Three phases:

        probe = jaxsae.sae.fit_probe(x, scores)                                  1. closed form, scores in 0..10
        state = with_probe(recipes.init(frozen, key, batch), probe.w, probe.b)   2. most of the run, probe fixed
        state, _ = recipes.adopt(joint, state, key, scored_batch)                3. phase="joint", with "score" [B]

    Rows and scores of phase 1 must be those the coder sees (after input scaling).  The paper lets a language model
    rate texts; any score in 0..10 will do.  Without a fitted probe every row has the same k(0) = k (low + 0.047 (high -
    low)).  The selection rounds k, so the probe learns in phase 3 from its own two terms alone.  Inference: k(x) per
    row, or a threshold averaged over training, which forgets k(x).

    Expect: FVU below `topk` at equal mean L0 where rows differ in complexity (testbed S4 with a noisy true count as
    score), and k(x) that follows it.

    Certainty: the form, the range of k and the phases were read in the authors' code; the default weights of l1 and of
    the probe terms are this library's choice.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: base number of latents per row.
        low: k_min / k.
        high: k_max / k.
        phase: "frozen" or "joint".
        l1_coefficient: weight of the relative L1 norm; 0 removes the term.
        probe_coefficient: p, in the joint phase.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK; None for the power of two nearest to d_in / 2.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        normalize_activations: standardise each row (the probe then reads standardised rows).
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> adaptive_k(d_in=16, d_sae=64, k=8).encoder.selector.cap
        32
    """
    joint = phase == "joint"
    aux = aux_latents(k_aux, d_in, d_sae)
    decay = round(lr_decay_fraction * training_steps)
    rank = Rank(min(d_sae, math.ceil(high * k)), ProbeRule(d_in, low, high, trained=joint))
    return Recipe(
        name="adaptive_k",
        view=Scored() if joint else Identity(),
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), rank),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(
            Mse(),
            *((RelativeL1(),) if l1_coefficient else ()),
            *((AuxK(aux),) if aux_loss_coefficient else ()),
            *((ProbeError(), ProbeDrift()) if joint else ()),
        ),
        trackers=(Fired(), EmaThreshold()),
        hyper=(
            ("lr", lr),
            ("k", k),
            ("dead_after_tokens", dead_after_tokens),
            *((("l1_coefficient", l1_coefficient),) if l1_coefficient else ()),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
            *((("probe_coefficient", probe_coefficient),) if joint else ()),
        ),
        optimizer=Adam(0.9, 0.999),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )


def with_probe(state: State, w: jax.Array, b: jax.Array) -> State:
    """A state whose complexity probe is this one, as the value and as the anchor of `ProbeDrift`.

    Args:
        state: of a recipe that selects by `ProbeRule`.
        w: [D] weight, as `fit_probe` returns it.
        b: [] bias.

    Raises:
        ConfigError: the state has no probe, or one of another width.

    Example:
        >>> from jaxsae import recipes
        >>> batch = {"x": jax.random.normal(jax.random.key(0), (64, 8))}
        >>> state = recipes.init(adaptive_k(8, 32, k=4), jax.random.key(1), batch)
        >>> float(with_probe(state, jnp.ones(8), jnp.float32(5.0)).params["probe_b"])
        5.0
    """
    new = {"probe_w": jnp.array(w, jnp.float32), "probe_b": jnp.array(b, jnp.float32)}  # copies: steps donate the state
    for name, value in new.items():
        if name not in state.params or state.params[name].shape != value.shape:
            found = state.params[name].shape if name in state.params else "no such leaf"
            raise ConfigError(f"with_probe: expected {name!r} of the state to have shape {value.shape}, found {found}")
    anchors = {name + "_start": jnp.array(value) for name, value in new.items()}
    return replace(state, params={**state.params, **new, **{n: a for n, a in anchors.items() if n in state.params}})
