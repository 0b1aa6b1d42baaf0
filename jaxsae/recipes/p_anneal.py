"""p-annealing: Karvonen et al. 2024, "Measuring progress in dictionary learning ... board game models", 2408.00113."""

from jaxsae.objective import Linear, Mse, PAnneal, PNorm
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, DatasetNorm, Fired, PreSelect, Relu, Unit


@published
def p_anneal(
    d_in: int,
    d_sae: int,
    sparsity_coefficient: float = 0.5,
    p_end: float = 0.2,
    anneal_start_fraction: float = 0.15,
    updates: int = 10,
    lr: float = 1e-3,
    lr_warm_up_steps: int = 1000,
    sparsity_warm_up_steps: int = 2000,
    root: bool = False,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """ReLU autoencoder whose L1 penalty turns into an Lp^p penalty (Karvonen et al. 2024, 2408.00113).

        z = relu((x - b_dec) W_enc + b_enc)      L = ||x - xhat||^2 + lambda c_t sum_j z_j^p_t

    p_t is 1 until annealing starts, then falls in `updates` equal steps towards `p_end`, where a sum of powers is
    nearer to a count than L1 is; c_t keeps the penalty's size at every change (see `PAnneal`).  Atoms keep norm 1.
    Inference: as trained (a threshold at 0).

    Uncertain: the reference trainer starts annealing at step 15,000; 0.15 is that step of 100,000.
    It leaves activations as they are, with lambda 0.1; here E||x|| = sqrt(d_in), and 0.5 is ours.

    Expect: a better frontier than a constant L1, comparable to `gated` (testbed S1).

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
        root: penalise the p-th root of the sum (Lp) instead of the sum (Lp^p).
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run; without it p stays at 1.

    Example:
        >>> p_anneal(d_in=16, d_sae=64, training_steps=1000).d_sae
        64
    """
    first = round(anneal_start_fraction * training_steps)
    length = queue(first, training_steps, updates)
    anneal = PAnneal(first, training_steps, p_end=p_end, updates=updates, queue=length, root=root)
    return Recipe(
        name="p_anneal",
        norm=DatasetNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Relu()),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(Mse(), PNorm(schedule=Linear(warm_up_steps=sparsity_warm_up_steps), root=root)),
        trackers=(Fired(), anneal),
        hyper=(("lr", lr), ("sparsity_coefficient", sparsity_coefficient), ("dead_after_tokens", dead_after_tokens)),
        optimizer=Adam(0.9, 0.999, clip=None),
        lr_schedule=Linear(lr_warm_up_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )


def queue(first: int, last: int, updates: int) -> int:
    """Steps over which penalties are compared: the paper's 10, or all of a stage that is shorter."""
    return max(1, min(10, (last - first) // max(updates - 1, 1)))
