"""JumpReLU with the tanh-quadratic penalty of OpenMOSS' llamascopium, which suppresses dense latents."""

from jaxsae.objective import Linear, Mse, TanhQuadratic
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, DatasetNorm, Fired, Free, JumpRelu, PreSelect


@published
def jumprelu_tanh_quad(
    d_in: int,
    d_sae: int,
    sparsity_coefficient: float = 0.3,
    tanh_scale: float = 4.0,
    frequency_scale: float = 0.01,
    bandwidth: float = 4.0,
    start_threshold: float = 0.1,
    threshold_lr_factor: float = 0.1,
    lr: float = 5e-5,
    lr_warm_up_steps: int = 500,
    sparsity_warm_up_fraction: float = 0.1,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """JumpReLU autoencoder with a tanh-quadratic penalty (OpenMOSS, llamascopium; sparsity loss "tanh-quad").

        f_j = mean_B tanh(c z_j ||d_j||)
        L = ||x - xhat||^2 + lambda sum_j f_j (1 + f_j / s)

    f_j is about the share of rows on which latent j is on.  One that is on in a tenth of the rows pays 1 + 0.1 / s = 11
    times per row what a rare one pays, where L0, L1 and tanh charge both alike.  Rows are scaled so that E||x|| =
    sqrt(d_in); atoms are free; thresholds are trained through their logarithm, with a tenth of the learning rate.
    Inference: the learned thresholds, exactly.

    The defaults are those of that library's example for Pythia 160M (window 4, start 0.1, lambda 0.3, rate 5e-5,
    factor 0.1) and of its trainer's configuration (c = 4, s = 0.01, 500 steps and 10 % of warm-up).  Ours: atoms start
    at norm 1/sqrt(3) and W_enc at W_dec^T, where it searches a grid for the best norm; Adam clips at 1.

    Expect: a smaller share of latents that are on in more than 10 % of the rows than with `jumprelu_anthropic`
    (testbed S1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        sparsity_coefficient: lambda, for E||x|| = sqrt(d_in).
        tanh_scale: c.
        frequency_scale: s, the share of rows at which a latent costs twice as much.
        bandwidth: eps, width of the straight-through window.
        start_threshold: threshold at the start.
        threshold_lr_factor: learning rate of the thresholds relative to the rest.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up of the rate.
        sparsity_warm_up_fraction: share of the run over which lambda rises linearly.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16; thresholds stay in f32.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by the warm-up of lambda.

    Example:
        >>> jumprelu_tanh_quad(d_in=16, d_sae=64).d_sae
        64
    """
    warm_up = round(sparsity_warm_up_fraction * training_steps)
    penalty = TanhQuadratic(schedule=Linear(warm_up_steps=warm_up), c=tanh_scale, s=frequency_scale)
    return Recipe(
        name="jumprelu_tanh_quad",
        norm=DatasetNorm(),
        encoder=PreSelect(Affine(d_in, d_sae), JumpRelu(start_threshold)),
        dictionary=Free(d_sae, d_in, init_norm=3**-0.5),
        readout=Bias(d_in),
        terms=(Mse(), penalty),
        trackers=(Fired(),),
        hyper=(
            ("lr", lr),
            ("sparsity_coefficient", sparsity_coefficient),
            ("bandwidth", bandwidth),
            ("dead_after_tokens", dead_after_tokens),
        ),
        optimizer=Adam(0.9, 0.999, lr_factors=(("log_threshold", threshold_lr_factor),)),
        lr_schedule=Linear(lr_warm_up_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
