"""TopK with AuxK: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", 2406.04093."""

from jaxsae.objective import AuxK, Linear, NormalisedMse
from jaxsae.optim import Adam, Precision
from jaxsae.recipes.defaults import aux_latents, lr_rule
from jaxsae.recipes.recipe import Recipe
from jaxsae.recipes.registry import published
from jaxsae.sae import Affine, Bias, EmaThreshold, Fired, NoNorm, PreSelect, Rank, RowNorm, Unit


@published
def topk(
    d_in: int,
    d_sae: int,
    k: int = 32,
    lr: float | None = None,
    lr_warm_up_steps: int = 0,
    lr_decay_fraction: float = 0.0,
    aux_loss_coefficient: float = 1 / 32,
    k_aux: int | None = None,
    dead_after_tokens: int = 10_000_000,
    normalize_activations: bool = True,
    bfloat16: bool = False,
    average_decay: float | None = None,
    training_steps: int = 0,
) -> Recipe:
    """TopK sparse autoencoder with AuxK (Gao et al. 2024, 2406.04093).

        pre = (x - b_dec) W_enc + b_enc      z = relu(TopK_k(pre))      xhat = z W_dec + b_dec
        L = ||x - xhat||^2 / var(x) + (1/32) L_aux

    Rows are standardised one by one; atoms keep norm 1; b_dec starts at the geometric median, W_enc at the transpose
    of W_dec.  The latent bias b_enc is that of the reference implementation.  Inference: k best per row, or a
    threshold averaged over training (about the same mean L0, another one on each row).

    Expect: FVU below ReLU + L1 at equal L0 (testbed S1), few dead latents, log FVU about linear in log d_sae.

    Args:
        d_in: width of the activations.
        d_sae: number of latents.
        k: latents kept per row.
        lr: peak learning rate; None for the paper's rule 2e-4 / sqrt(d_sae / 2^14), meant for large batches.
        lr_warm_up_steps: linear warm-up.
        lr_decay_fraction: share of the run, at its end, over which the rate falls linearly to 0.
        aux_loss_coefficient: weight of AuxK; 0 removes the term.
        k_aux: dead latents used by AuxK; None for the power of two nearest to d_in / 2.
        dead_after_tokens: a latent silent for so many tokens counts as dead.
        normalize_activations: standardise each row (False: rows as they come).
        bfloat16: compute the large products in bf16.
        average_decay: evaluate and export a running mean of the weights (0.999 in the paper); None for the last ones.
        training_steps: length of the run, needed by the decay.

    Example:
        >>> topk(d_in=16, d_sae=64, k=4).d_sae
        64
    """
    aux = aux_latents(k_aux, d_in, d_sae)
    decay = round(lr_decay_fraction * training_steps)
    return Recipe(
        name="topk",
        norm=RowNorm() if normalize_activations else NoNorm(),
        encoder=PreSelect(Affine(d_in, d_sae, b_pre="b_dec"), Rank(k)),
        dictionary=Unit(d_sae, d_in),
        readout=Bias(d_in, start="geometric_median"),
        terms=(NormalisedMse(), *((AuxK(aux),) if aux_loss_coefficient else ())),
        trackers=(Fired(), EmaThreshold()),
        hyper=(
            ("lr", lr if lr is not None else lr_rule(d_sae)),
            ("k", k),
            ("dead_after_tokens", dead_after_tokens),
            *((("aux_loss_coefficient", aux_loss_coefficient),) if aux_loss_coefficient else ()),
        ),
        optimizer=Adam(0.9, 0.999, eps=6.25e-10),
        lr_schedule=Linear(lr_warm_up_steps, decay, training_steps),
        precision=Precision("bfloat16" if bfloat16 else "float32"),
        average_decay=average_decay,
    )
