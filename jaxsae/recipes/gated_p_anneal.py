"""A gated autoencoder whose gate penalty is annealed: Karvonen et al. 2024, 2408.00113, with 2404.16014."""

from dataclasses import replace

from jaxsae.objective import GateAux, Linear, Mse, PAnneal, PNorm
from jaxsae.recipes.gated import gated
from jaxsae.recipes.p_anneal import queue
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Fired


@published
def gated_p_anneal(
    d_in: int,
    d_sae: int,
    sparsity_coefficient: float = 0.5,
    p_end: float = 0.2,
    anneal_start_fraction: float = 0.15,
    updates: int = 10,
    lr: float = 3e-4,
    lr_warm_up_steps: int = 1000,
    sparsity_warm_up_steps: int = 2000,
    root: bool = False,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """Gated autoencoder with p-annealing of its gate (Karvonen et al. 2024, 2408.00113).

        L = ||x - xhat||^2 + lambda c_t sum_j relu(g_j)^p_t + ||x - relu(g) sg(W_dec) - sg(b_dec)||^2

    `gated` with the gate's L1 replaced by the penalty of `p_anneal`; see both.  Inference: thresholds, as `gated`.

    Expect: a frontier at or below that of `gated` (testbed S1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        sparsity_coefficient: lambda, for E||x|| = sqrt(d_in).
        p_end: exponent approached at the end of the run.
        anneal_start_fraction: share of the run before p starts to fall.
        updates: number of values p takes.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up of the rate.
        sparsity_warm_up_steps: linear warm-up of lambda.
        root: penalise the p-th root of the sum.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run; without it p stays at 1.

    Example:
        >>> gated_p_anneal(d_in=16, d_sae=64, training_steps=1000).d_sae
        64
    """
    base = gated(d_in, d_sae, 0.0, lr, lr_warm_up_steps, 0, dead_after_tokens, bfloat16, average_decay)
    first = round(anneal_start_fraction * training_steps)
    length = queue(first, training_steps, updates)
    anneal = PAnneal(first, training_steps, p_end=p_end, updates=updates, queue=length, root=root, on_gate=True)
    penalty = PNorm(schedule=Linear(warm_up_steps=sparsity_warm_up_steps), root=root, on_gate=True)
    hyper = (("lr", lr), ("sparsity_coefficient", sparsity_coefficient), ("dead_after_tokens", dead_after_tokens))
    return replace(
        base, name="gated_p_anneal", terms=(Mse(), penalty, GateAux()), trackers=(Fired(), anneal), hyper=hyper
    )
