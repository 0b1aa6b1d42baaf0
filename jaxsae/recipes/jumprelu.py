"""JumpReLU: Rajamanoharan et al. 2024, "Jumping ahead", 2407.14435."""

from jaxsae.objective import CosineWarmUp, L0Step, Linear, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, DatasetNorm, Fired, JumpRelu, PreSelect, Unit


@published
def jumprelu(
    d_in: int,
    d_sae: int,
    l0_coefficient: float = 1e-3,
    bandwidth: float = 0.001,
    start_threshold: float = 0.001,
    log_threshold: bool = True,
    lr: float = 7e-5,
    lr_warm_up_steps: int = 1000,
    l0_warm_up_steps: int = 10_000,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
) -> Recipe:
    """JumpReLU autoencoder with a penalty on L0 itself (Rajamanoharan et al. 2024, 2407.14435).

        z_j = pre_j 1(pre_j > theta_j)      pre = x W_enc + b_enc      xhat = z W_dec + b_dec
        L = ||x - xhat||^2 + lambda sum_j 1(pre_j > theta_j)

    The thresholds theta = exp(t) learn by straight-through gradients with a rectangle of width `bandwidth`; those of
    the L0 term reach nothing else.  Rows are scaled to a mean squared norm of 1, atoms keep norm 1, the input is not
    centred (as in Gemma Scope, 2408.05147), Adam has b1 = 0, the rate rises from a tenth by half a cosine, lambda over
    the first 10,000 steps.  Inference: the learned thresholds, exactly.

    Uncertain: the paper sweeps lambda and names no default, 1e-3 is ours; warm-ups, init of biases at 0 and of W_enc
    at W_dec^T follow the paper's text as reported by other implementations, not checked line by line.

    Expect: about BatchTopK's FVU at equal L0, below Gated and ReLU (testbeds S1, S4).  Slow at the start: with
    log thresholds and so small a rate a threshold grows by a factor of at most exp(lr) a step, 1.07 in 1,000 steps;
    for short runs take `log_threshold=False` or a larger start, and a bandwidth of the size of the thresholds sought.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        l0_coefficient: lambda, for activations of mean squared norm 1.
        bandwidth: eps, width of the straight-through window, in units of pre-activations.
        start_threshold: theta at the start.
        log_threshold: train log(theta) rather than theta.
        lr: peak learning rate.
        lr_warm_up_steps: steps from a tenth of the rate to the whole.
        l0_warm_up_steps: steps over which lambda rises linearly.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16; thresholds stay in f32.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.

    Example:
        >>> jumprelu(d_in=16, d_sae=64).d_sae
        64
    """
    return Recipe(
        name="jumprelu",
        norm=DatasetNorm("mean_square"),
        encoder=PreSelect(Affine(d_in, d_sae), JumpRelu(start_threshold, log=log_threshold)),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in),
        terms=(Mse(), L0Step(schedule=Linear(warm_up_steps=l0_warm_up_steps))),
        trackers=(Fired(),),
        hyper=(
            ("lr", lr),
            ("l0_coefficient", l0_coefficient),
            ("bandwidth", bandwidth),
            ("dead_after_tokens", dead_after_tokens),
        ),
        optimizer=Adam(0.0, 0.999, clip=None),
        lr_schedule=CosineWarmUp(lr_warm_up_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
