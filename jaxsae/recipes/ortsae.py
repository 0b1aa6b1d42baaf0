"""OrtSAE: Korznikov et al. 2025, "OrtSAE: Orthogonal Sparse Autoencoders Uncover Atomic Features", 2509.22033."""

from dataclasses import replace

from jaxsae.objective import Orthogonality
from jaxsae.recipes.batch_topk import batch_topk
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published


@published
def ortsae(
    d_in: int,
    d_sae: int,
    k: float = 32.0,
    orthogonality_coefficient: float = 0.25,
    chunk: int = 8192,
    every: int = 1,
    lr: float = 3e-4,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int = 512,
    dead_after_tokens: int = 20_480,
    threshold_beta: float = 0.99,
    candidates: int | None = None,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """BatchTopK with a penalty on atoms that resemble each other (Korznikov et al. 2025, 2509.22033).

        L = L_BatchTopK + gamma mean_i ( max over j != i of cos(d_i, d_j) )^2,     j in the random chunk of i

    New chunks of at most `chunk` atoms are drawn at every step, so the cost is linear in d_sae.  Cosines are signed.
    Everything else as in `batch_topk`, on whose code the paper builds.  Inference: a threshold, as there.

    Uncertain: the paper's loss has the squared error as its mean over entries in the code it starts from and its sum in
    the text; gamma 0.25 was not checked against released code, so compare its size with that of the reconstruction
    term of your data.

    Expect: mean nearest-neighbour cosine, absorption and composition below BatchTopK (testbeds S2, S3) at a slightly
    worse FVU.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents per row on average.
        orthogonality_coefficient: gamma.
        chunk: most atoms compared with each other.
        every: compute the penalty at every n-th step only, n times as heavy (5 in the paper's cheaper variant).
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK, no more than d_sae.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        threshold_beta: decay of the running mean of the threshold.
        candidates: latents each row offers; None for 4 k.
        normalize_activations: standardise each row.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> [term.name for term in ortsae(d_in=16, d_sae=64, k=4).terms]
        ['mse', 'auxk', 'orthogonality']
    """
    base = batch_topk(
        d_in, d_sae, k, lr, lr_warm_up_steps, lr_decay_fraction, aux_loss_coefficient, k_aux, dead_after_tokens,
        threshold_beta, candidates, False, normalize_activations, bfloat16, average_decay, training_steps,
    )  # fmt: skip
    return replace(
        base,
        name="ortsae",
        terms=(*base.terms, Orthogonality(chunk=chunk, every=every)),
        hyper=(*base.hyper, ("orthogonality_coefficient", orthogonality_coefficient)),
    )
