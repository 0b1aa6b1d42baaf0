"""Zhu, Khalili & Zhu 2025, "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features", 2510.00404."""

from dataclasses import replace

from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.recipes.topk import topk
from jaxsae.sae import Affine, PreSelect, Rank


@published
def abs_topk(
    d_in: int,
    d_sae: int,
    k: int = 32,
    lr: float | None = None,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int | None = None,
    dead_after_tokens: int = 10_000_000,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """TopK by magnitude, signs kept (Zhu, Khalili & Zhu 2025, 2510.00404).

        z = the k entries of pre largest in |pre|, with their sign, the rest 0      xhat = z W_dec + b_dec

    One proximal gradient step on the l0-constrained problem; no relu anywhere.  Dead latents are those with z = 0, and
    AuxK ranks them by |pre|.

    Certainty: the form is that of the paper; its training details were not checked against code, so everything else is
    that of `topk`.

    Expect: on data whose coefficients have both signs (testbed S5) one atom per axis, where TopK needs two that point
    opposite ways; on non-negative data (S1) no difference.  Metrics that test z > 0 see half of such a coder: ask for
    each sign by itself.  Inference: k best per row; the threshold form (on |pre|) is possible but costs more here.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents kept per row.
        lr: peak learning rate; None for the rule of `topk`.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK; None for the power of two nearest to d_in / 2.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        normalize_activations: standardise each row.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> abs_topk(d_in=16, d_sae=64, k=4).encoder.selector.signed
        True
    """
    base = topk(
        d_in, d_sae, k, lr, lr_warm_up_steps, lr_decay_fraction, aux_loss_coefficient, k_aux, dead_after_tokens,
        normalize_activations, bfloat16, average_decay, training_steps,
    )  # fmt: skip
    return replace(base, name="abs_topk", encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Rank(k, signed=True)))
