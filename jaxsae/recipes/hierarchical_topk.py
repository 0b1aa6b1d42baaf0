"""Balagansky et al. 2025, "Train One Sparse Autoencoder Across Multiple Sparsity Budgets", 2505.24473."""

from dataclasses import replace

from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.recipes.topk import topk
from jaxsae.sae import ByRank


@published
def hierarchical_topk(
    d_in: int,
    d_sae: int,
    k: int = 128,
    every: int = 1,
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
    """HierarchicalTopK (Balagansky et al. 2025, 2505.24473): one coder for every k up to K.

        L = (1 / |J|) sum over j in J of ||x - xhat_j||^2 / var(x),     xhat_j = b_dec + the j best latents of the row

    J is 1..K, or every `every`-th of them.  Residuals are walked one latent at a time: memory grows with B * E + B * K,
    not with K reconstructions (up to eight of them are kept on a CPU).  The paper states the objective with the plain
    squared error; the division by the variance, the AuxK term (optional there) and the optimiser are those of `topk`.
    Inference: K best per row, fewer by `sae.at_k`, or a threshold averaged over training.

    Expect: explained variance against the k kept at inference (`sae.at_k`) on or above the envelope of TopK coders
    trained at each k (testbed S1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: K, the largest number of latents per row (128 in the paper).
        every: the step of J; K always belongs to it.
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
        >>> hierarchical_topk(d_in=16, d_sae=64, k=8, every=3).levels.counts
        (2, 5, 8)
    """
    base = topk(
        d_in, d_sae, k, lr, lr_warm_up_steps, lr_decay_fraction, aux_loss_coefficient, k_aux, dead_after_tokens,
        normalize_activations, bfloat16, average_decay, training_steps,
    )  # fmt: skip
    counts = tuple(range(k, 0, -max(every, 1)))[::-1]
    return replace(base, name="hierarchical_topk", levels=ByRank(counts))
