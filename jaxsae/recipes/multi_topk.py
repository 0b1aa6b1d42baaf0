"""TopK trained at two sparsities: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", 2406.04093."""

from dataclasses import replace

from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.recipes.topk import topk
from jaxsae.sae import Affine, ByRank, PreSelect, Rank


@published
def multi_topk(
    d_in: int,
    d_sae: int,
    k: int = 32,
    multiple: int = 4,
    multiple_weight: float = 1 / 8,
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
    """Multi-TopK (Gao et al. 2024, 2406.04093): trained at k and at a multiple of it, usable in between.

        L = L(k) + L(4k) / 8 + (1/32) L_aux

    L(n) is the variance-normalised error with the n best latents of each row; one encoding, one ranked list, two points
    of one decode.  Everything else as in `topk`; metrics and AuxK see the reconstruction with k latents.

    Inference: k best per row, any other number by `sae.at_k`, or a threshold averaged over training.

    Expect: FVU improves when more than k latents are kept at inference (`sae.at_k`), where plain TopK gets worse beyond
    its own k; slightly worse at k itself (testbed S1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents kept per row; a sweep over k moves both levels.
        multiple: the second level keeps multiple * k, no more than d_sae.
        multiple_weight: weight of the second level.
        lr: peak learning rate; None for the paper's rule (see `topk`).
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
        >>> multi_topk(d_in=16, d_sae=64, k=4).levels.counts
        (1, 4)
    """
    base = topk(
        d_in, d_sae, k, lr, lr_warm_up_steps, lr_decay_fraction, aux_loss_coefficient, k_aux, dead_after_tokens,
        normalize_activations, bfloat16, average_decay, training_steps,
    )  # fmt: skip
    return replace(
        base,
        name="multi_topk",
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Rank(k)),
        levels=ByRank(
            (1, multiple), of_k=True, longest=min(multiple * k, d_sae), weights=(1.0, multiple_weight), summed=True
        ),
    )
