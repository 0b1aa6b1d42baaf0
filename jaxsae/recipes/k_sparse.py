"""k-sparse autoencoders: Makhzani & Frey 2013, "k-Sparse Autoencoders", 1312.5663."""

import math

from jaxsae.objective import Anneal, Linear, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Bias, EmaThreshold, Fired, PreSelect, Rank, Tied, TiedAffine


@published
def k_sparse(
    d_in: int,
    d_sae: int,
    k: int = 15,
    k_start: int = 100,
    anneal_fraction: float = 0.5,
    lr: float = 1e-3,
    lr_decay_fraction: float = 0.0,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """k-sparse autoencoder (Makhzani & Frey 2013, 1312.5663): tied weights, linear units, the k largest kept.

        a = x W + b      z = a on its k largest entries, else 0      xhat = z W^T + b'      L = ||x - xhat||^2

    No relu: where fewer than k entries are positive, negative ones are kept.  k falls linearly from `k_start` to k over
    the first part of the run, so that all latents are trained before they compete.  k is an array below the capacity
    `k_start`: annealing compiles nothing anew.

    Uncertain: the paper's example goes from 100 to 15 over the first half of the epochs and trains by gradient descent
    with momentum, as its text is reported elsewhere; Adam and its rate are ours.

    Inference: the alpha k largest, alpha about 1 to 3, as `sae.at_k(exported, 3 * k)`: the paper classifies from them.

    Expect: on digits a linear probe on these codes beats raw pixels and PCA; few latents stay unused for k_start above
    k, more without annealing.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents kept per row in the end.
        k_start: latents kept at the beginning, no more than d_sae.
        anneal_fraction: share of the run over which k falls.
        lr: peak learning rate.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by both schedules.

    Example:
        >>> k_sparse(d_in=16, d_sae=64, k=4, k_start=20).encoder.selector.cap
        20
    """
    cap = max(k, min(k_start, d_sae))
    steps, decay = round(anneal_fraction * training_steps), round(lr_decay_fraction * training_steps)
    return Recipe(
        name="k_sparse",
        encoder=PreSelect(TiedAffine(d_in, d_sae), Rank(math.ceil(cap), rectify=False)),
        dictionary=Tied(d_sae, d_in),
        readout=Bias(d_in),
        terms=(Mse(),),
        trackers=(Fired(), EmaThreshold()),
        hyper=(("lr", lr), ("k", k), ("dead_after_tokens", dead_after_tokens)),
        annealed=(("k", Anneal(cap / max(k, 1), steps)),),
        optimizer=Adam(0.9, 0.999),
        lr_schedule=Linear(0, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
