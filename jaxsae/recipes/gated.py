"""Gated SAE: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", 2404.16014."""

from jaxsae.objective import GateAux, GateL1, Linear, Mse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Bias, DatasetNorm, Fired, Gated, PreSelect, Relu, Unit


@published
def gated(
    d_in: int,
    d_sae: int,
    l1_coefficient: float = 0.5,
    lr: float = 3e-4,
    lr_warm_up_steps: int = 1000,
    l1_warm_up_steps: int = 2000,
    dead_after_tokens: int = 10_000_000,
    bfloat16: bool = False,
    average_decay: float | None = None,
) -> Recipe:
    """Gated autoencoder (Rajamanoharan et al. 2024, 2404.16014): one path decides, another measures.

        q = (x - b_dec) W_enc      g = q + b_gate      m = q exp(r_mag) + b_mag      z = 1(g > 0) relu(m)
        L = ||x - xhat||^2 + lambda sum_j relu(g_j) + ||x - relu(g) sg(W_dec) - sg(b_dec)||^2

    sg is a stop gradient: the third term trains the gate to be worth something without training the atoms for it.  The
    penalty acts on the gate alone, so magnitudes do not shrink.  Atoms keep norm 1, W_enc starts at W_dec^T, biases and
    r_mag at 0, Adam has b1 = 0.  Inference: an affine encoder with thresholds, exactly; W = W_enc exp(r_mag),
    b = b_mag, theta = b_mag - exp(r_mag) b_gate.

    Uncertain: the paper sweeps lambda and scales activations in a way it does not spell out; here E||x|| = sqrt(d_in),
    and 0.5 is ours.  The warm-ups are dictionary_learning's.

    Expect: a relative reconstruction bias of about 1, where `relu_l1` stays below, and a better frontier (testbed S1).

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        l1_coefficient: lambda, for E||x|| = sqrt(d_in).
        lr: peak learning rate.
        lr_warm_up_steps: linear warm-up of the rate.
        l1_warm_up_steps: linear warm-up of lambda.
        dead_after_tokens: a latent silent for so many tokens is reported as dead.
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights; None for the last ones.

    Example:
        >>> gated(d_in=16, d_sae=64).d_sae
        64
    """
    return Recipe(
        name="gated",
        norm=DatasetNorm(),
        encoder=PreSelect(Gated(d_in, d_sae), Relu()),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in),
        terms=(Mse(), GateL1(schedule=Linear(warm_up_steps=l1_warm_up_steps)), GateAux()),
        trackers=(Fired(),),
        hyper=(("lr", lr), ("l1_coefficient", l1_coefficient), ("dead_after_tokens", dead_after_tokens)),
        optimizer=Adam(0.0, 0.999, clip=None),
        lr_schedule=Linear(lr_warm_up_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
