"""ReLU with L1 weighted by decoder norm: Anthropic, "Update on training SAEs", Circuits Updates, April 2024."""

from jaxsae.objective import L1, Linear, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, DatasetNorm, Fired, Free, PreSelect, Relu


@published
def relu_l1(
    d_in: int,
    d_sae: int,
    l1_coefficient: float = 5.0,
    lr: float = 5e-5,
    l1_warm_up_fraction: float = 0.05,
    lr_decay_fraction: float = 0.2,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """ReLU autoencoder whose L1 penalty counts decoder norms (Anthropic, April 2024 update).

        z = relu(x W_enc + b_enc)      xhat = z W_dec + b_dec
        L = ||x - xhat||^2 + lambda sum_j z_j ||d_j||

    Activations are scaled so that E||x|| = sqrt(d_in); atoms are free and start as random rows of norm 0.1, W_enc as
    their transpose, biases at 0; no pre-encoder bias, no resampling.  lambda rises over the first 5 % of the run, the
    learning rate falls to 0 over the last 20 %.  Inference: as trained (a threshold at 0).

    Uncertain: the form is that of dictionary_learning's trainer of the same name; the constants (lambda, norms of the
    start, warm-up, rate and its decay) were not checked against the update's text line by line.

    Expect: a monotone frontier of FVU against L0 as lambda moves, above that of TopK and JumpReLU (testbed S1), and
    shrinkage (relative reconstruction bias below 1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        l1_coefficient: lambda, for activations with E||x|| = sqrt(d_in).
        lr: peak learning rate.
        l1_warm_up_fraction: share of the run over which lambda rises linearly.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.
        training_steps: length of the run, needed by both schedules.

    Example:
        >>> relu_l1(d_in=16, d_sae=64).d_sae
        64
    """
    warm_up, decay = round(l1_warm_up_fraction * training_steps), round(lr_decay_fraction * training_steps)
    return Recipe(
        name="relu_l1",
        norm=DatasetNorm(),
        encoder=PreSelect(Affine(d_in, d_sae), Relu()),
        dictionary=Free(d_sae, d_in, init_norm=0.1),
        readout=Bias(d_in),
        terms=(Mse(), L1(schedule=Linear(warm_up_steps=warm_up))),
        trackers=(Fired(),),
        hyper=(("lr", lr), ("l1_coefficient", l1_coefficient), ("dead_after_tokens", dead_after_tokens)),
        optimizer=Adam(0.9, 0.999),
        lr_schedule=Linear(0, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
