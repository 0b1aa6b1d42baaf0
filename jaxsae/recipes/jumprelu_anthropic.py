"""JumpReLU with tanh penalty and pre-activation loss: Anthropic, Circuits Updates, January 2025."""

from jaxsae.objective import Linear, Mse, PreAct, Tanh
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, DatasetNorm, Fired, Free, JumpRelu, PreSelect


@published
def jumprelu_anthropic(
    d_in: int,
    d_sae: int,
    sparsity_coefficient: float = 10.0,
    pre_act_loss_coefficient: float = 3e-6,
    tanh_scale: float = 4.0,
    bandwidth: float = 2.0,
    start_threshold: float = 0.1,
    start_l0: int = 10_000,
    lr: float = 2e-4,
    lr_decay_fraction: float = 0.2,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """JumpReLU autoencoder of Anthropic's January 2025 update ("Dictionary learning optimization techniques").

        z_j = pre_j 1(pre_j > exp(t_j))
        L = ||x - xhat||^2 + lambda_S sum_j tanh(c z_j ||d_j||) + lambda_P sum_j relu(exp(t_j) - pre_j) ||d_j||

    Straight-through gradients with a rectangle of width 2 reach all parameters, the encoder too.  Rows are scaled so
    that E||x|| = sqrt(d_in); atoms are free; lambda_S rises linearly over the whole run, the rate falls to 0 over the
    last fifth, gradients are clipped at 1.  W_dec starts with entries of variance 1 / (3 d_in), W_enc at (d_in / d_sae)
    W_dec^T, and b_enc where a latent is on in a share start_l0 / d_sae of the rows.  Inference: the learned
    thresholds, exactly.

    Uncertain: the update's text was read through excerpts and others' implementations.  "t initialised to 0.1" is taken
    as a threshold of 0.1, as OpenMOSS does.  Ours: atoms start as random directions of norm 1/sqrt(3), the mean norm of
    the uniform draw there; and the share at the start is at most one half, for dictionaries of fewer than 20,000.

    Expect: few dead latents, FVU at or below that of `jumprelu` at equal L0 (testbed S1), and no long wait before L0
    falls.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        sparsity_coefficient: lambda_S at the end of the run, for E||x|| = sqrt(d_in).
        pre_act_loss_coefficient: lambda_P.
        tanh_scale: c.
        bandwidth: eps, width of the straight-through window.
        start_threshold: threshold at the start.
        start_l0: latents on per row at the start.
        lr: peak learning rate.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16; thresholds stay in f32.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by both schedules.

    Example:
        >>> jumprelu_anthropic(d_in=16, d_sae=64).d_sae
        64
    """
    share = min(start_l0 / d_sae, 0.5)
    encoder = Affine(d_in, d_sae, start_scale=d_in / d_sae, start_share=share, start_above=start_threshold)
    return Recipe(
        name="jumprelu_anthropic",
        norm=DatasetNorm(),
        encoder=PreSelect(encoder, JumpRelu(start_threshold, to_pre=True)),
        dictionary=Free(d_sae, d_in, init_norm=3**-0.5),
        readout=Bias(d_in),
        terms=(Mse(), Tanh(schedule=Linear(warm_up_steps=training_steps), c=tanh_scale), PreAct()),
        trackers=(Fired(),),
        hyper=(
            ("lr", lr),
            ("sparsity_coefficient", sparsity_coefficient),
            ("pre_act_loss_coefficient", pre_act_loss_coefficient),
            ("bandwidth", bandwidth),
            ("dead_after_tokens", dead_after_tokens),
        ),
        optimizer=Adam(0.9, 0.999),
        lr_schedule=Linear(0, round(lr_decay_fraction * training_steps), training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
