"""ReLU, L1 and resampling: Bricken et al. 2023, "Towards monosemanticity"."""

from jaxsae.objective import L1, Linear, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.recipes.resample import Resample, Reservoir
from jaxsae.sae import Affine, Bias, Fired, PreSelect, Relu, Unit


@published
def bricken(
    d_in: int,
    d_sae: int,
    l1_coefficient: float = 0.1,
    lr: float = 1e-3,
    lr_warm_up_steps: int = 1000,
    l1_warm_up_steps: int = 2000,
    resample_steps: tuple[int, ...] = (25_000, 50_000, 75_000, 100_000),
    resample_rows: int | None = None,
    dead_after_tokens: int = 102_400_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
) -> Recipe:
    """ReLU autoencoder with L1, unit atoms and resampling of dead latents (Bricken et al. 2023).

        z = relu((x - b_dec) W_enc + b_enc)      xhat = z W_dec + b_dec      L = ||x - xhat||^2 + lambda sum_j z_j

    Atoms keep norm 1 and their gradient loses its part along them; b_dec starts at the geometric median.  After the
    steps in `resample_steps` every latent that was silent for `dead_after_tokens` gets a row drawn with probability
    proportional to the square of its loss: see `Resample`.  Inference: as trained (a threshold at 0).

    Uncertain: lambda depends on the scale of the activations, which this recipe leaves as it is; 0.1, the rate and the
    warm-ups are dictionary_learning's.  The paper counts a latent dead after 12,500 steps of 8,192 rows, here the
    tokens of these; set it to about half of the distance between two resamplings.

    Expect: dead latents come back after each resampling, at a short rise of the loss (testbed S1); shrinkage as with
    every L1.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        l1_coefficient: lambda, for activations as they come.
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up of the rate.
        l1_warm_up_steps: linear warm-up of lambda.
        resample_steps: steps after which dead latents are redrawn; () for never.
        resample_rows: most latents redrawn at once; None for all, up to 8,192.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.

    Example:
        >>> bricken(d_in=16, d_sae=64, resample_steps=(500,), dead_after_tokens=50_000).d_sae
        64
    """
    at = tuple(sorted(resample_steps))
    reservoir = Reservoir(d_in, resample_rows or min(d_sae, 8192), at)
    return Recipe(
        name="bricken",
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Relu()),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(Mse(), L1(schedule=Linear(warm_up_steps=l1_warm_up_steps), by_norm=False)),
        trackers=(Fired(), reservoir) if at else (Fired(),),
        transforms=(Resample(at),) if at else (),
        hyper=(("lr", lr), ("l1_coefficient", l1_coefficient), ("dead_after_tokens", dead_after_tokens)),
        optimizer=Adam(0.9, 0.999, clip=None),
        lr_schedule=Linear(lr_warm_up_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
