"""JumpReLU that steers its mean L0 to a target: the trainer of dictionary_learning, after 2407.14435."""

from jaxsae.objective import Linear, Mse, TargetL0
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, DatasetNorm, Fired, JumpRelu, PreSelect, Unit


@published
def jumprelu_target_l0(
    d_in: int,
    d_sae: int,
    target_l0: float = 20.0,
    l0_coefficient: float = 1.0,
    bandwidth: float = 0.001,
    start_threshold: float = 0.001,
    lr: float = 7e-5,
    lr_warm_up_steps: int = 1000,
    l0_warm_up_steps: int = 2000,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """JumpReLU autoencoder that is asked for a mean L0 (dictionary_learning's JumpReluTrainer).

        z_j = pre_j 1(pre_j > theta_j)      xhat = z W_dec + b_dec
        L = ||x - xhat||^2 + lambda (mean_B L0 / target - 1)^2

    The thresholds are trained as they are, not through their logarithm, with a rectangle of width `bandwidth`; atoms
    keep norm 1; rows are scaled to a mean squared norm of 1; gradients are clipped at 1, Adam has b1 = 0.  The L0 term
    counts pre-activations above their threshold; that trainer counts gated codes, whose window has no lower half, and
    so pulls half as hard.  Inference: the learned thresholds, exactly.

    Expect: a mean L0 at the target within some percent once the thresholds have arrived there, FVU as `jumprelu`
    (testbed S1).  A threshold moves by about lr a step: start, rate and length of the run decide whether it arrives.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        target_l0: wanted mean number of latents per row.
        l0_coefficient: lambda.
        bandwidth: eps, width of the straight-through window.
        start_threshold: theta at the start.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up of the rate.
        l0_warm_up_steps: linear warm-up of lambda.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16; thresholds stay in f32.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run; warm-ups are cut to a tenth of it where they are longer.

    Raises:
        ConfigError: a target outside 0 .. d_sae.

    Example:
        >>> jumprelu_target_l0(d_in=16, d_sae=64, target_l0=8).d_sae
        64
    """
    most = max(training_steps // 10, 1) if training_steps else max(lr_warm_up_steps, l0_warm_up_steps)
    return Recipe(
        name="jumprelu_target_l0",
        norm=DatasetNorm("mean_square"),
        encoder=PreSelect(Affine(d_in, d_sae), JumpRelu(start_threshold, log=False)),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in),
        terms=(Mse(), TargetL0(schedule=Linear(warm_up_steps=min(l0_warm_up_steps, most)))),
        trackers=(Fired(),),
        hyper=(
            ("lr", lr),
            ("l0_coefficient", l0_coefficient),
            ("target_l0", float(target_l0)),
            ("bandwidth", bandwidth),
            ("dead_after_tokens", dead_after_tokens),
        ),
        optimizer=Adam(0.0, 0.999),
        lr_schedule=Linear(warm_up_steps=min(lr_warm_up_steps, most)),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
