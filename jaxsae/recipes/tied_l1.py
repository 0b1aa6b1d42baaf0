"""Tied ReLU autoencoder: Cunningham et al. 2023, 2309.08600."""

from jaxsae.objective import L1, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Fired, NoReadout, PreSelect, Relu, Tied, TiedAffine


@published
def tied_l1(
    d_in: int,
    d_sae: int,
    l1_coefficient: float = 8.6e-4,
    lr: float = 1e-3,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
) -> Recipe:
    """One matrix for both ways and an L1 penalty (Cunningham et al. 2023, 2309.08600).

        z = relu(x M^T + b)      xhat = z M      L = ||x - xhat||^2 + alpha ||z||_1

    M has rows of norm 1 and is encoder and dictionary at once; there is no decoder bias and no input scaling.
    Inference: as trained, with a matrix for each way.

    Uncertain: 8.6e-4 is the paper's alpha at ratio d_sae / d_in = 1 to 8 for its residual streams, reconstructed from
    memory, and means what it does only for a squared error that is summed over entries; sweep it on other activations.

    Expect: the shrinkage of every L1 penalty (relative reconstruction bias below 1); a frontier above that of untied
    coders (testbed S1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents; the paper's ratios to d_in are 0.5 to 16.
        l1_coefficient: alpha.
        lr: learning rate.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.

    Example:
        >>> tied_l1(d_in=16, d_sae=64).d_sae
        64
    """
    return Recipe(
        name="tied_l1",
        encoder=PreSelect(TiedAffine(d_in, d_sae), Relu()),
        dictionary=Tied(d_sae, d_in),
        readout=NoReadout(d_in),
        terms=(Mse(), L1(by_norm=False)),
        trackers=(Fired(),),
        hyper=(("lr", lr), ("l1_coefficient", l1_coefficient), ("dead_after_tokens", dead_after_tokens)),
        optimizer=Adam(0.9, 0.999, clip=None),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
